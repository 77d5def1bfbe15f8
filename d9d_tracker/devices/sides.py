"""Histograms of values on other devices than the buffers: counted where they are, joined when a window ends."""

from typing import Any

import torch

from d9d_tracker_kernels import LAST_STEP, HistogramState, Moment, allocate
from d9d_tracker_kernels.device import GPU, gpu


class Streams:
    """The stream of each GPU that worked on buffers last."""

    def __init__(self):
        self._last: dict[torch.device, Any] = {}

    def follow(self, device: torch.device) -> None:
        """Have this thread's stream of a GPU wait for the one before, in eager code, if it is another."""
        if gpu.is_current_stream_capturing():
            return
        current, last = gpu.current_stream(device), self._last.get(device)
        if current != last:
            if last is not None:
                current.wait_stream(last)
            self._last[device] = current


class Sides:
    """Up to ``rows`` histograms on each other device than the GPU that has the buffers: on other GPUs, on the host."""

    def __init__(self, rows: int, streams: Streams):
        self._rows = rows
        self._streams = streams
        self._banks: dict[torch.device, tuple[HistogramState, torch.Tensor]] = {}
        self._used: dict[torch.device, None] = {}

    def count(self, step: int, slots: list[int], populations: list[torch.Tensor], binning: tuple[Any, ...]) -> None:
        """Count populations of one device into slots, by ``Binning.parameters``, in one launch for each dtype."""
        bank, now = self._bank(populations[0].device, step)
        bank.count_(populations, slots, bank.places, now, 1, *binning)

    def add_counts(self, step: int, slot: int, values: torch.Tensor) -> None:
        """Add counts that are counts already; see ``count``."""
        bank, now = self._bank(values.device, step)
        torch.ops.d9d_tracker.add_counts_(values, bank.counts, bank.moments, bank.places, now, slot, 1)

    def joined(self, moments: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the histograms of all devices, added to those of the buffers' own, without a wait."""
        for device in self._used:
            if device.type == GPU:
                self._streams.follow(device)
            bank, _ = self._banks[device]
            other, own = (_moved(part[: len(counts)], counts.device) for part in (bank.counts, bank.moments))
            last = torch.maximum(counts[:, LAST_STEP], other[:, LAST_STEP])
            smallest = torch.minimum(moments[:, Moment.MIN], own[:, Moment.MIN])
            largest = torch.maximum(moments[:, Moment.MAX], own[:, Moment.MAX])
            moments, counts = moments + own, counts + other
            counts[:, LAST_STEP], moments[:, Moment.MIN], moments[:, Moment.MAX] = last, smallest, largest
        return moments, counts

    def reset(self, rows: int | None) -> None:
        """Empty the first rows; all if None."""
        for device in self._used:
            self._banks[device][0].reset_(rows)
        self._used = {}

    def _bank(self, device: torch.device, step: int) -> tuple[HistogramState, torch.Tensor]:
        if device.type == GPU:
            self._streams.follow(device)
        if device not in self._banks:
            with torch.inference_mode(False):
                self._banks[device] = allocate(self._rows, device), torch.zeros(1, dtype=torch.int64, device=device)
        self._banks[device][1].fill_(step)
        self._used[device] = None
        return self._banks[device]


def _moved(part: torch.Tensor, device: torch.device) -> torch.Tensor:
    part = part.pin_memory() if part.device.type == "cpu" else part
    return part.to(device, non_blocking=True)
