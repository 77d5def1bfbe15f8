"""One window's way from the device to the host: packed, copied once, unpacked."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from d9d_tracker_kernels import CALLS, CELLS, HEADER, LAST_STEP, MAX, MIN, MOMENTS

from .event_wait import wait_for
from .registry import HistogramSeries, ScalarSeries
from .scalars import COUNT, LANES, merge_lanes

_COLUMNS = HEADER + CELLS


@dataclass
class HostWindow:
    """The states of a window, on the host.

    Attributes:
        index: How many windows of the run came before.
        steps: The step of each row.
        lanes: Scalar states, float64 of shape ``[rows, LANES, scalars]``.
        counts: Histogram headers and cells, int64 of shape ``[histograms, HEADER + CELLS]``.
        moments: Histogram moments, float64 of shape ``[histograms, 4]``.
        scalars: The scalar series, in the order of the slots.
        histograms: The histogram series, in the order of the slots.
    """

    index: int
    steps: list[int]
    lanes: np.ndarray
    counts: np.ndarray
    moments: np.ndarray
    scalars: list[ScalarSeries]
    histograms: list[HistogramSeries]


@dataclass
class Window:
    """A window on its way: the device has been told to copy, the host has not waited.

    Attributes:
        index: How many windows of the run came before.
        steps: The step of each row.
        packed: The one buffer that travels, float64 of shape ``[numbers]``, on the host.
        ready: Recorded behind the copy, or None when the buffers are on the CPU.
        mid_step: Whether more may be logged for the last step.
        scalars: The scalar series at the time of the swap.
        histograms: The histogram series at the time of the swap.
    """

    index: int
    steps: list[int]
    packed: torch.Tensor
    ready: torch.cuda.Event | None
    mid_step: bool
    scalars: list[ScalarSeries] = field(default_factory=list)
    histograms: list[HistogramSeries] = field(default_factory=list)

    def wait(self) -> HostWindow:
        """Wait for the copy and unpack it. Not for the training thread."""
        if self.ready is not None:
            wait_for(self.ready)
        packed = self.packed.numpy()
        lanes = len(self.steps) * LANES * len(self.scalars)
        moments = lanes + len(self.histograms) * MOMENTS
        return HostWindow(
            index=self.index,
            steps=self.steps,
            lanes=packed[:lanes].reshape(len(self.steps), LANES, len(self.scalars)),
            moments=packed[lanes:moments].reshape(len(self.histograms), MOMENTS),
            counts=packed[moments:].view(np.int64).reshape(len(self.histograms), _COLUMNS),
            scalars=self.scalars,
            histograms=self.histograms,
        )


def copy_to_host(
    lanes: torch.Tensor, moments: torch.Tensor, counts: torch.Tensor, stream: Any
) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Pack the state of a window and start its one copy to the host.

    The packed tensor is a snapshot, so the caller may reset the buffers at once.

    Args:
        lanes: Scalar states, float64 of shape ``[rows, LANES, scalars]``.
        moments: Histogram moments, float64 of shape ``[histograms, 4]``.
        counts: Histogram headers and cells, int64 of shape ``[histograms, HEADER + CELLS]``.
        stream: The CUDA stream that copies beside the training, or None on the CPU.

    Returns:
        The buffer on the host, float64 of one dimension, and the event behind the copy (None on the CPU).
    """
    packed = torch.cat((lanes.reshape(-1), moments.reshape(-1), counts.view(torch.float64).reshape(-1)))
    if stream is None:
        return packed, None
    host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
    stream.wait_stream(torch.cuda.current_stream(packed.device))
    with torch.cuda.stream(stream):
        host.copy_(packed, non_blocking=True)
        ready = torch.cuda.Event(blocking=True)  # whoever waits for it sleeps
        ready.record(stream)
    packed.record_stream(stream)
    return host, ready


@dataclass
class Tail:
    """What was written for a step that has not ended, because ``flush`` was called in its middle.

    A value logged for that step later must merge with what was written, not stand beside it.

    Attributes:
        step: The step.
        lanes: Lanes of each scalar series that was written, float64 of shape ``[LANES]``.
        counts: Header and cells of each histogram series that was written, int64 of shape ``[HEADER + CELLS]``.
        moments: Moments of each histogram series that was written, float64 of shape ``[4]``.
    """

    step: int
    lanes: dict[ScalarSeries, np.ndarray] = field(default_factory=dict)
    counts: dict[HistogramSeries, np.ndarray] = field(default_factory=dict)
    moments: dict[HistogramSeries, np.ndarray] = field(default_factory=dict)

    def merge_into(self, window: HostWindow) -> None:
        """Merge what was written into the points of the same step of a later window, in place.

        Args:
            window: The window that follows.
        """
        for row, step in enumerate(window.steps):
            for slot, series in enumerate(window.scalars if step == self.step else ()):
                if series in self.lanes and window.lanes[row, COUNT, slot] > 0:
                    older, newer = self.lanes[series][:, None], window.lanes[row, :, slot, None]
                    window.lanes[row, :, slot] = merge_lanes(older, newer)[:, 0]
        for slot, series in enumerate(window.histograms):
            counts = window.counts[slot]
            if series in self.counts and counts[CALLS] > 0 and counts[LAST_STEP] == self.step:
                counts += self.counts[series]
                counts[LAST_STEP] = self.step
                window.moments[slot] = merge_moments(self.moments[series], window.moments[slot])

    def as_window(self, index: int) -> HostWindow:
        """Return what was written as a window of its own, to write it again.

        Args:
            index: Index of that window.
        """
        lanes, histograms = list(self.lanes.values()), list(self.counts)
        return HostWindow(
            index=index,
            steps=[self.step],
            lanes=np.array(lanes).reshape(1, len(lanes), LANES).transpose(0, 2, 1),
            counts=np.array(list(self.counts.values()), dtype=np.int64).reshape(len(histograms), _COLUMNS),
            moments=np.array([self.moments[series] for series in histograms]).reshape(len(histograms), MOMENTS),
            scalars=list(self.lanes),
            histograms=histograms,
        )

    @classmethod
    def of(cls, window: HostWindow, before: "Tail | None") -> "Tail":
        """Collect what a window has written for its last step.

        Args:
            window: The window, with ``before`` merged in.
            before: What earlier windows have written for the same step, if any.
        """
        tail = cls(window.steps[-1])
        if before is not None and before.step == tail.step:
            tail.lanes, tail.counts, tail.moments = dict(before.lanes), dict(before.counts), dict(before.moments)
        for slot in np.flatnonzero(window.lanes[-1, COUNT] > 0):
            tail.lanes[window.scalars[slot]] = window.lanes[-1, :, slot].copy()
        for slot in np.flatnonzero((window.counts[:, CALLS] > 0) & (window.counts[:, LAST_STEP] == tail.step)):
            tail.counts[window.histograms[slot]] = window.counts[slot].copy()
            tail.moments[window.histograms[slot]] = window.moments[slot].copy()
        return tail


def merge_moments(older: np.ndarray, newer: np.ndarray) -> np.ndarray:
    """Merge histogram moments.

    Args:
        older: Sum, sum of squares, minimum and maximum, float64 of shape ``[..., 4]``.
        newer: The same of further values, of the same shape.

    Returns:
        The moments of all the values, of the same shape.
    """
    merged = older + newer
    merged[..., MIN] = np.minimum(older[..., MIN], newer[..., MIN])
    merged[..., MAX] = np.maximum(older[..., MAX], newer[..., MAX])
    return merged
