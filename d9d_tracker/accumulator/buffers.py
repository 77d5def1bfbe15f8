"""The device side of a tracker: every buffer that logging touches, and the clock of its windows."""

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
        filed: Steps of the rows that the window holds.
        passed: How many steps of the window have ended.
        windows: Index of the next window.
        copies: How many copies to the host this run took.
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
        self.filed: list[int] = []
        self.passed = 0
        self.windows = 0
        self.copies = 0

    def start(self) -> None:
        """Empty everything for a new run. The slots stay: compiled code knows them."""
        self.scalars.reset()
        self.histograms.reset_()
        self.step, self.filed, self.passed, self.windows, self.copies = 0, [], 0, 0, 0
        self.device_step.fill_(0)

    def advance(self, step: int) -> Window | None:
        """End the current step and begin another.

        Args:
            step: The step that begins.

        Returns:
            The window that this completed, if it did.
        """
        if self._per_step:
            self.scalars.file(len(self.filed))
            self.filed.append(self.step)
        self.passed += 1
        window = self._swap() if self.passed == self.sync_every else None
        self.step = step
        self.device_step.fill_(step)
        return window

    def close_window(self) -> Window:
        """End the window early, with the current step as far as it got."""
        if self._per_step:
            self.scalars.file(len(self.filed))
            self.filed.append(self.step)
        return self._swap()

    def _swap(self) -> Window:
        if not self._per_step:
            self.scalars.file(0)
            self.filed = [self.step]
        scalars, histograms = self.scalar_series.series[:], self.histogram_series.series[:]
        host, ready = copy_to_host(
            self.scalars.window[: len(self.filed), :, : len(scalars)],
            self.histograms.moments[: len(histograms)],
            self.histograms.counts[: len(histograms)],
            self._copy_stream,
        )
        self.copies += 1
        window = Window(self.next_window(), self.filed, host, ready, scalars, histograms)
        self.histograms.reset_()
        self.filed, self.passed = [], 0
        return window

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
