"""The device side of a tracker: every buffer that logging touches, and the clock of its windows."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from d9d_tracker.config import AccumulatorConfig
from d9d_tracker_kernels import allocate

from .registry import HistogramSeries, Registry, ScalarSeries
from .scalars import ScalarBank
from .window import Window, copy_to_host


class Buffers:
    """All device state of a tracker. Its tensors keep their addresses for life.

    Attributes:
        device: Where the tensors are.
        scalars: Scalar state.
        histograms: Histogram state: counts, moments and the kernels' scratch.
        device_step: The current step for kernels to read, int64 of shape ``[1]``.
        scalar_series: Slots of the scalar series.
        histogram_series: Slots of the histogram series.
        resolution: Whether scalars have one point per ``"step"`` or per ``"window"``.
        sync_every: Number of steps in a window.
        step: The current step.
        first: The step that the window began with.
        filed: Steps of the rows that the window holds.
        passed: How many steps of the window have ended.
        windows: Index of the next window.
        copies: How many copies to the host this run took.
        outbox: Windows that were swapped and not yet taken over, oldest first.
    """

    def __init__(self, config: AccumulatorConfig):
        device = _device(config.device)
        self.resolution = config.scalar_resolution
        self.sync_every = config.sync_every
        self._per_step = self.resolution == "step"
        rows = config.sync_every if self._per_step else 1
        # Tensors born in inference mode could never be written outside it.
        with torch.inference_mode(False):
            self.scalars = ScalarBank(rows, config.max_scalars, device)
            self.histograms = allocate(config.max_histograms, device)
            self.device_step = torch.zeros(1, dtype=torch.int64, device=device)
        self.device = self.device_step.device
        state = (self.histograms.counts, self.histograms.moments, self.histograms.partials, self.device_step)
        for tensor in state:
            torch._dynamo.mark_static_address(tensor, guard=True)
        self.scalar_series: Registry[ScalarSeries] = Registry(config.max_scalars, "max_scalars")
        self.histogram_series: Registry[HistogramSeries] = Registry(config.max_histograms, "max_histograms")
        self._copy_stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.step = 0
        self.first = 0
        self.filed: list[int] = []
        self.passed = 0
        self.windows = 0
        self.copies = 0
        self.outbox: deque[Window] = deque()
        self._changes: deque[Callable[[], object]] = deque()

    def start(self) -> None:
        """Empty everything for a new run. The slots stay: compiled code knows them."""
        self.scalars.reset()
        self.histograms.reset_()
        self.step, self.first, self.filed, self.passed, self.windows, self.copies = 0, 0, [], 0, 0, 0
        self.device_step.fill_(0)
        self.outbox.clear()
        self._changes.clear()

    def count(self, populations: list[torch.Tensor], rows: list[int], *parameters: Any) -> None:
        """Count populations into histograms; may be traced.

        Args:
            populations: Tensors on the device.
            rows: The slot of each.
            *parameters: Cadence and binning, see ``histogram_slot``.
        """
        bank = self.histograms
        state = (bank.counts, bank.moments, bank.partials, self.device_step)
        if len(rows) == 1:
            torch.ops.d9d_tracker.histogram_(populations[0], *state, rows[0], *parameters)
        else:
            torch.ops.d9d_tracker.histogram_many_(populations, *state, rows, *parameters)

    def advance(self, step: int) -> bool:
        """End the current step and begin another.

        Args:
            step: The step that begins.

        Returns:
            Whether this completed a window, which is then in the outbox.
        """
        self.finish()
        passed = self.passed + 1
        completes = passed == self.sync_every
        self.finish(
            [
                *(self._filing() if self._per_step or completes else []),
                lambda: setattr(self, "passed", passed),
                *(self._swapping(step) if completes else []),
                lambda: setattr(self, "step", step),
                lambda: self.device_step.fill_(step),
            ]
        )
        return completes

    def close_window(self) -> None:
        """End the window early, with the current step as far as it got. It is then in the outbox."""
        self.finish()
        self.finish([*self._filing(), *self._swapping(self.step)])

    def finish(self, changes: Sequence[Callable[[], object]] = ()) -> None:
        """Make changes, after those still due. An exception from a signal handler finds none or all of them made.

        SIGINT and SIGTERM may raise between any two lines of ``advance``, and what is then sent on the way out must
        hold the step once. That is why all changes become due in one call, every one of them may be made twice, and
        none is forgotten before it was made.

        Args:
            changes: What to do, in this order.
        """
        try:
            self._changes.extend(changes)
            self._make_changes()
        except BaseException:
            self._make_changes()
            raise

    def _make_changes(self) -> None:
        while self._changes:
            self._changes[0]()
            self._changes.popleft()

    def _filing(self) -> list[Callable[[], object]]:
        """Put the current step away as a row of the window."""
        row = len(self.filed) if self._per_step else 0
        filed = [*self.filed[:row], self.step]
        return [
            lambda: self.scalars.file(row),
            lambda: setattr(self, "filed", filed),
            self.scalars.reset,
        ]

    def _swapping(self, first: int) -> list[Callable[[], object]]:
        """Send the window off, and begin the next one at step ``first``."""
        index, copies = self.windows, self.copies + 1
        scalars, histograms = self.scalar_series.series[:], self.histogram_series.series[:]
        return [
            lambda: self._send(index, first, scalars, histograms),
            lambda: self.histograms.reset_(len(histograms)),
            lambda: setattr(self, "filed", []),
            lambda: setattr(self, "passed", 0),
            lambda: setattr(self, "first", first),
            lambda: setattr(self, "windows", index + 1),
            lambda: setattr(self, "copies", copies),
        ]

    def _send(self, index: int, first: int, scalars: list[ScalarSeries], histograms: list[HistogramSeries]) -> None:
        if self.outbox and self.outbox[-1].index == index:
            return
        host, ready = copy_to_host(
            self.scalars.window[: len(self.filed), :, : len(scalars)],
            self.histograms.moments[: len(histograms)],
            self.histograms.counts[: len(histograms)],
            self._copy_stream,
        )
        self.outbox.append(Window(index, self.filed, host, ready, self.filed[-1] == first, scalars, histograms))

    def next_window(self) -> int:
        """Take the index of the next window."""
        self.windows += 1
        return self.windows - 1


def _device(device: str) -> torch.device:
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
