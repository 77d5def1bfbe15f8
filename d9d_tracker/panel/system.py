"""How busy the machine is: asked by libraries of the extra ``system``, and not by the thread that trains."""

import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from d9d_tracker.log import logger, warn_once
from d9d_tracker.windows.readings import Later
from d9d_tracker_kernels.device import GPU, IS_AMD, gpu

_PAUSE_SECONDS = 2.0  # psutil reads files of the system, while the training may wait for the interpreter
_said: set[str] = set()
_GPU: dict[str, tuple[str, float]] = {  # the function of torch.cuda, which knows both libraries, and its unit in ours
    "system/gpu/utilization": ("utilization", 1.0),
    "system/gpu/power": ("power_draw", 1e-3),
    "system/gpu/temperature": ("temperature", 1.0),
    "system/gpu/clock": ("clock_rate", 1.0),
}
_COUNTERS = {
    "system/disk/read": ("disk_io_counters", "read_bytes"),
    "system/disk/written": ("disk_io_counters", "write_bytes"),
    "system/network/received": ("net_io_counters", "bytes_recv"),
    "system/network/sent": ("net_io_counters", "bytes_sent"),
}


class System:
    """The machine that a rank is on.

    Args:
        device: Where the training runs.
        clock: Tells the seconds between two samples.

    Attributes:
        names: What a sample may have.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.monotonic):
        self._device, self._clock = device, clock
        self._before: dict[str, float] = {}
        self._sampled: float | None = None
        self._has_gpu = device.type == GPU and _has("amdsmi" if IS_AMD else "pynvml", "of the GPU")
        self._has_host = _has("psutil", "of CPU, memory, disk and network")
        host = ("system/cpu", "system/ram", *_COUNTERS) if self._has_host else ()
        self.names: tuple[str, ...] = (*(_GPU if self._has_gpu else ()), *host)

    def readings(self) -> dict[str, Later]:
        """Return what a sample may have, to be known later: it is taken when one of them is first asked for."""
        taken: list[dict[str, float]] = []

        def value(name: str) -> float | None:
            if not taken:
                taken.append(self.sample())
            return taken[0].get(name)

        return {name: Later(lambda name=name: value(name)) for name in self.names}

    def sample(self) -> dict[str, float]:
        """Ask for what there is, and for what has passed since the last sample; nothing so soon after it."""
        now = self._clock()
        if self._sampled is not None and now - self._sampled < _PAUSE_SECONDS:
            return {}
        found: dict[str, float] = {}
        for name, (function, unit) in _GPU.items() if self._has_gpu else ():
            found |= _asked(name, lambda function=function, unit=unit: getattr(gpu, function)(self._device) * unit)
        if self._has_host:
            found |= self._host(now)
        self._sampled = now
        return found

    def _host(self, now: float) -> dict[str, float]:
        import psutil  # which is an extra

        found = _asked("system/ram", lambda: float(psutil.virtual_memory().used))
        before = self._sampled
        busy = _asked("system/cpu", psutil.cpu_percent)  # since the last call: the first one has none
        counts: dict[str, float] = {}
        for name, (function, field) in _COUNTERS.items():
            counts |= _asked(name, lambda function=function, field=field: getattr(getattr(psutil, function)(), field))
        if before is not None and now > before:
            found |= busy
            found |= {
                name: (count - self._before[name]) / (now - before)
                for name, count in counts.items()
                if name in self._before
            }
        self._before = counts
        return found


def _has(library: str, what: str) -> bool:
    if find_spec(library) is not None:
        return True
    words = "nothing is logged %s: %s is not installed; pip install d9d_tracker[system]"
    warn_once(("needed", library), words, what, library)
    return False


def _asked(name: str, ask: Callable[[], Any]) -> dict[str, float]:
    """Return one value by its name; nothing, said once, if this machine does not have it."""
    try:
        return {name: float(ask())}
    except Exception as error:  # each library has errors of its own, and some machines have no disks
        if name not in _said:
            _said.add(name)
            logger.info("%s is not logged: %r", name, error)
        return {}
