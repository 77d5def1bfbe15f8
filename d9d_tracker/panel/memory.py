"""How much memory is in use, by counters that the allocator and the system keep."""

import os
from contextlib import suppress
from pathlib import Path
from typing import SupportsFloat

import torch

from d9d_tracker.windows.readings import Later
from d9d_tracker_kernels.device import GPU, gpu

_STATISTICS = {
    "memory/allocated": "allocated_bytes.all.current",
    "memory/allocated/peak": "allocated_bytes.all.peak",
    "memory/reserved": "reserved_bytes.all.current",
    "memory/reserved/peak": "reserved_bytes.all.peak",
    "memory/retries": "num_alloc_retries",
}


def memory(device: torch.device) -> dict[str, SupportsFloat]:
    """Return bytes in use by the name of their series, and begin the peaks anew. Waits for nothing.

    Args:
        device: Where the training runs. Of the caching allocator of a GPU there are ``memory/allocated``,
            ``memory/reserved``, their peaks since the last call, and ``memory/retries``: how often it had to free its
            cache because the GPU was full. ``memory/host``, which is asked for later, is what the process has in the
            host's memory.
    """
    found: dict[str, SupportsFloat] = {"memory/host": Later(_of_process)}
    if device.type == GPU:
        statistics = gpu.memory_stats(device)
        found |= {name: float(statistics[key]) for name, key in _STATISTICS.items() if key in statistics}
        gpu.reset_peak_memory_stats(device)
    return found


def _of_process() -> float | None:
    with suppress(OSError, ValueError, IndexError):  # not on Linux
        return float(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE"))
    return None
