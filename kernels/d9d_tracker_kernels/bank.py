"""The device buffers of a bank of histograms."""

import math
from dataclasses import dataclass
from typing import Any

import torch

import d9d_tracker_kernels.ops  # noqa: F401 which registers the operators
from d9d_tracker_kernels.binning import CALLS, CELLS, HEADER, LAST_STEP, MOMENTS, Moment
from d9d_tracker_kernels.device import GPU, most_programs

# A GPU program (thread block) leaves sum, sum of squares, min and max in a place of its own.
PARTIAL_WIDTH = 4


@dataclass(frozen=True)
class HistogramState:
    """Buffers of a bank of `rows` histograms on one device. Their addresses never change.

    Attributes:
        counts: int64 [rows, HEADER + CELLS], see the column names in `binning`.
        moments: float64 [rows, MOMENTS], see `binning.Moment`.
        partials: float64 [rows, 1 + programs, PARTIAL_WIDTH], the kernels' scratch. The first place of a row is its
            ticket counter, zero between launches; [rows, 0, PARTIAL_WIDTH] on the CPU, where nothing needs it.
        places: int64 [rows], for those who know the row: place k is row k.
    """

    counts: torch.Tensor
    moments: torch.Tensor
    partials: torch.Tensor
    places: torch.Tensor

    def count_(
        self, populations: list[torch.Tensor], at: list[int], table: torch.Tensor, step: torch.Tensor, *parameters: Any
    ) -> None:
        """Counts populations, on the device, by the operator for one or for many; `parameters` are its last."""
        state = (self.counts, self.moments, self.partials, table, step)
        if len(at) == 1:
            torch.ops.d9d_tracker.histogram_(populations[0], *state, at[0], *parameters)
        else:
            torch.ops.d9d_tracker.histogram_many_(populations, *state, at, *parameters)

    def reset_(self, rows: int | None = None) -> None:
        """Empties rows in place, with asynchronous fills only.

        The tickets too: two launches of a row that overlapped, on two streams, leave its ticket wrong.

        Args:
            rows: How many, from the first; all if None.
        """
        if rows == 0:
            return
        self.counts[:rows].zero_()
        self.partials[:rows, :1].zero_()
        moments = self.moments[:rows]
        moments.zero_()
        moments[:, Moment.MIN].fill_(math.inf)
        moments[:, Moment.MAX].fill_(-math.inf)

    def merge_(self, row: int, counts: torch.Tensor, moments: torch.Tensor, step: int) -> None:
        """Merges a finished histogram into a row, without a wait. Not for code that is compiled or captured.

        Args:
            row: The row.
            counts: int64 [HEADER + CELLS], on the device, with CALLS and LAST_STEP zero.
            moments: float64 [MOMENTS], on the device.
            step: The current step.
        """
        header, kept = self.counts[row], self.moments[row]
        header.add_(counts)
        header[CALLS].add_(1)
        header[LAST_STEP].fill_(step)
        kept[: Moment.MIN].add_(moments[: Moment.MIN])
        torch.minimum(kept[Moment.MIN], moments[Moment.MIN], out=kept[Moment.MIN])
        torch.maximum(kept[Moment.MAX], moments[Moment.MAX], out=kept[Moment.MAX])


def allocate(rows: int, device: torch.device | str) -> HistogramState:
    """Allocates an empty bank. Call it in eager code, never inside a compiled region or a graph capture.

    Args:
        rows: Number of histograms (series).
        device: Where the values live that will be counted.
    """
    device = torch.device(device)
    programs = 1 + most_programs(device) if device.type == GPU else 0
    state = HistogramState(
        counts=torch.empty(rows, HEADER + CELLS, dtype=torch.int64, device=device),
        moments=torch.empty(rows, MOMENTS, dtype=torch.float64, device=device),
        partials=torch.zeros(rows, programs, PARTIAL_WIDTH, dtype=torch.float64, device=device),
        places=torch.arange(rows, device=device),
    )
    state.reset_()
    return state
