"""One window's way from the device to the host: packed, copied once, unpacked."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from d9d_tracker_kernels import CELLS, HEADER, MOMENTS

from .event_wait import wait_for
from .host_window import HostWindow
from .registry import HistogramSeries, ScalarSeries
from .scalars import LANES

_COLUMNS = HEADER + CELLS


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
