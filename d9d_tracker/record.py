"""What a backend is handed: host values, finished and named."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from d9d_tracker_kernels.binning import APART, CELLS, EXPONENTIAL, HEADER, LINEAR, cell_edges, sorted_cells

from .config import Binning, ExponentialBinning

if TYPE_CHECKING:
    import torch

_FLOAT32_END = 2.0**128
_QUANTILES = {"p01": 0.01, "p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Exact counts over explicit edges, with the statistics of the same values.

    A bin is ``[edges[i], edges[i + 1])`` and the last one is closed, with two exceptions: the bins of an exponential
    binning are closed on the side of zero on both signs, and the highest bin of a linear binning stays closed when
    values above it follow in one more bin. Only finite values are binned and enter the statistics; the others are
    counted apart. With no finite value, ``counts`` is empty, ``edges`` is ``[0.0]`` and ``min`` and ``max`` are NaN.

    Attributes:
        edges: Rising bin edges, float64 of shape ``[bins + 1]``, trimmed to the non-empty range.
        counts: Values per bin, int64 of shape ``[bins]``.
        sum: Sum of the finite values.
        sum_squares: Sum of their squares.
        min: Smallest finite value.
        max: Largest finite value.
        zeros: How many of the values are zero, of either sign.
        nan: How many NaN were left out.
        posinf: How many positive infinities were left out.
        neginf: How many negative infinities were left out.
    """

    edges: np.ndarray
    counts: np.ndarray
    sum: float
    sum_squares: float
    min: float
    max: float
    zeros: int
    nan: int
    posinf: int
    neginf: int

    def __post_init__(self) -> None:
        """Take numbers of any width, as NumPy gives them: a histogram travels as bytes and as JSON."""
        fill = functools.partial(object.__setattr__, self)
        fill("edges", np.asarray(self.edges, np.float64))
        fill("counts", np.asarray(self.counts, np.int64))
        for name, kind in STATISTICS.items():
            fill(name, kind(getattr(self, name)))
        if self.edges.shape != (len(self.counts) + 1,):
            raise ValueError(f"a histogram of {len(self.counts)} counts has one edge more, not {len(self.edges)}")

    @property
    def count(self) -> int:
        """Number of finite values: the sum of ``counts``."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Mean of the finite values; NaN if there are none."""
        return self.sum / self.count if self.count else math.nan

    @property
    def std(self) -> float:
        """Population standard deviation of the finite values; NaN if there are none.

        Its relative error is below 1e-5 while the mean is at most 10,000 times as large.
        """
        if not self.count:
            return math.nan
        if self.min == self.max:
            return 0.0
        return math.sqrt(max(self.sum_squares / self.count - self.mean * self.mean, 0.0))

    @property
    def rms(self) -> float:
        """Root of the mean square of the finite values; NaN if there are none."""
        return math.sqrt(self.sum_squares / self.count) if self.count else math.nan

    @property
    def norm(self) -> float:
        """L2 norm of the finite values; 0 if there are none."""
        return math.sqrt(self.sum_squares)

    @property
    def abs_max(self) -> float:
        """Largest magnitude of the finite values; NaN if there are none."""
        return max(abs(self.min), abs(self.max))

    def cumulative_at(self, points: np.ndarray) -> np.ndarray:
        """Count values below each point, spreading the values of a bin evenly over it.

        Args:
            points: Rising values, float64.

        Returns:
            Interpolated counts, float64, of the shape of ``points``.
        """
        edges = np.clip(self.edges, self.min, self.max)
        return np.interp(points, edges, np.concatenate(([0], np.cumsum(self.counts))))

    def quantile(self, q: float) -> float:
        """Return the value below which a fraction ``q`` of the finite values lies, interpolated within its bin.

        Args:
            q: Fraction between 0 and 1.

        Returns:
            A value between ``min`` and ``max``; NaN if there is no finite value.
        """
        if not self.count:
            return math.nan
        cumulative = np.cumsum(self.counts)
        rank = q * self.count
        bin_index = int(np.searchsorted(cumulative, rank, side="left"))
        bin_index = min(int(np.flatnonzero(self.counts)[0]) if rank <= 0 else bin_index, len(self.counts) - 1)
        low, high = np.clip(self.edges[bin_index : bin_index + 2], self.min, self.max)
        below = cumulative[bin_index] - self.counts[bin_index]
        return float(low + (high - low) * (rank - below) / self.counts[bin_index])

    def summary(self) -> dict[str, float]:
        """Return the histogram as scalars: quantiles, moments, zeros and non-finite counts.

        Statistics that need a finite value are left out when there is none.
        """
        names = ("mean", "std", "rms", "norm", "min", "max", "abs_max") if self.count else ()
        moments = {name: float(getattr(self, name)) for name in names}
        quantiles = {key: self.quantile(q) for key, q in _QUANTILES.items()} if self.count else {}
        counts = {"count": self.count, "zeros": self.zeros, "nan": self.nan, "inf": self.posinf + self.neginf}
        return {**quantiles, **moments, **{key: float(value) for key, value in counts.items()}}

    @classmethod
    def from_cells(cls, counts: np.ndarray, moments: np.ndarray, binning: Binning) -> Self:
        """Read one row of a histogram bank.

        Args:
            counts: Header and cells, int64 of shape ``[HEADER + CELLS]``.
            moments: Sum, sum of squares, minimum and maximum, float64 of shape ``[4]``.
            binning: The binning that the row was counted with.
        """
        kind, bins, low, high = binning.parameters()
        known, places = _cells_in_order(kind, bins, low, high)
        cells = counts[HEADER + places]
        if kind == EXPONENTIAL:
            cells[len(cells) // 2] += counts[HEADER + bins // 2]  # both cells next to zero are one bin
        total, squares, minimum, maximum = moments.tolist()
        used = np.flatnonzero(cells)
        if used.size:
            first, last = int(used[0]), int(used[-1])
            edges, cells = known[first : last + 2], cells[first : last + 1].copy()
            if first == 0 or last == len(known) - 2:
                edges = _with_bounds(edges, kind, minimum, maximum)
        else:
            edges, cells, minimum, maximum = np.zeros(1), cells[:0], math.nan, math.nan
        return cls(edges, cells, total, squares, minimum, maximum, *counts[APART].tolist())

    def to_cells(self, binning: Binning) -> tuple[np.ndarray, np.ndarray]:
        """Return a row of a histogram bank: what ``from_cells`` reads.

        Args:
            binning: The binning of the row.

        Returns:
            Header and cells, int64 of shape ``[HEADER + CELLS]``; and sum, sum of squares, minimum and maximum, float64
            of shape ``[4]``.

        Raises:
            ValueError: If a bin does not lie within one of the binning's, so that its values cannot be told apart.
        """
        kind, bins, low, high = binning.parameters()
        with np.errstate(over="ignore"):  # as the edges of a linear binning are rounded
            edges = self.edges.astype(np.float32) if kind == LINEAR else self.edges
        known, places = _cells_in_order(kind, bins, low, high)
        used = np.flatnonzero(self.counts)
        cells = np.searchsorted(known, edges[used], side="right") - 1
        if (edges[used + 1] > known[cells + 1]).any():
            raise ValueError("its edges are not those of the binning")
        counts = np.zeros(HEADER + CELLS, dtype=np.int64)
        np.add.at(counts, HEADER + places[cells], self.counts[used])
        counts[APART] = self.zeros, self.nan, self.posinf, self.neginf
        bounds = (self.min, self.max) if used.size else (math.inf, -math.inf)
        return counts, np.array([self.sum, self.sum_squares, *bounds])

    @classmethod
    def from_values(cls, values: "torch.Tensor", binning: Binning | None = None) -> Self:
        """Bin a population at once: on a GPU that has kernels of this library, else on the host.

        Args:
            values: The population: any shape, any real dtype, any device.
            binning: How to bin it; exponential by default.

        Raises:
            TypeError: If the dtype or layout cannot be binned.
        """
        import torch  # which only a population needs

        from d9d_tracker_kernels.bank import allocate
        from d9d_tracker_kernels.device import has_kernels
        from d9d_tracker_kernels.ops import check_values

        binning = binning or ExponentialBinning()
        check_values(values, values.device)
        values = values.detach() if has_kernels(values.device) else values.detach().cpu()
        state = allocate(1, values.device)
        step = torch.zeros(1, dtype=torch.int64, device=values.device)
        state.count_([values], [0], state.places, step, 1, *binning.parameters())
        return cls.from_cells(state.counts[0].cpu().numpy(), state.moments[0].cpu().numpy(), binning)


@functools.lru_cache(maxsize=64)
def _cells_in_order(kind: int, bins: int, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges of all cells of a row, the outermost infinite, and where the row keeps each cell."""
    edges, index = cell_edges(kind, bins, low, high), np.arange(CELLS)
    if kind == EXPONENTIAL:
        index[bins // 2] = 0  # both cells next to zero are one bin
        places = sorted_cells(index, kind, bins).cells
        known = np.concatenate(([-np.inf], edges[1:-1], [np.inf]))
    else:
        cells, under, over = (np.atleast_1d(part) for part in sorted_cells(index, kind, bins))
        places = np.concatenate((under, cells, over))
        known = np.concatenate(([-np.inf], edges, [np.inf]))
    known.flags.writeable = places.flags.writeable = False  # histograms share them
    return known, places


def _with_bounds(edges: np.ndarray, kind: int, minimum: float, maximum: float) -> np.ndarray:
    """Return edges whose infinite ends are where the values end: for exponential bins, the end of float32 at least."""
    edges = edges.copy()
    if kind == EXPONENTIAL:
        low, high = min(minimum, -_FLOAT32_END), max(maximum, _FLOAT32_END)
    else:
        # The largest value over may be the lower end of this bin: the integer `bins`.
        low, high = minimum, maximum if maximum > edges[-2] else maximum + 1
    edges[0] = low if edges[0] == -np.inf else edges[0]
    edges[-1] = high if edges[-1] == np.inf else edges[-1]
    return edges


# What a histogram has besides its edges and counts: the name and the kind of each number.
STATISTICS: dict[str, Any] = {field.name: field.type for field in fields(Histogram)[2:]}


class Record(NamedTuple):
    """One point of one series.

    Attributes:
        name: Name of the series.
        step: The step it belongs to.
        context: Tags of the series.
        value: A number, or a histogram.
        time: When the step began on the host, in seconds since the epoch; None where that is not known.
    """

    name: str
    step: int
    context: Mapping[str, str]
    value: float | Histogram
    time: float | None = None
