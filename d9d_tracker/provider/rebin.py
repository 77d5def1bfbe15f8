"""Histograms for backends that know fewer, or equal bins alone, and none that are not finite."""

from collections.abc import Iterator

import numpy as np

from d9d_tracker.record import Histogram


def parts_of(value: float | Histogram) -> Iterator[tuple[str, float | Histogram]]:
    """Yield a number, or a histogram if it has a finite value, and how many others it has; each with its suffix."""
    if not isinstance(value, Histogram):
        yield "", value
        return
    if value.count:
        yield "", value
    for suffix, count in (("/nan", value.nan), ("/inf", value.posinf + value.neginf)):
        if count:
            yield suffix, count


def rebin(histogram: Histogram, bins: int) -> tuple[np.ndarray, float, float]:
    """Spread a histogram over an even number of equal bins: counts, int64 of shape ``[bins]``, and the range's ends.

    A value is moved by at most the width of its bin; the total is kept exactly. The ends are minimum and maximum; when
    all values are equal to some v, they are v minus and plus half of its magnitude (0.5 for zero), and v is the lower
    edge of the bin in the middle.
    """
    if not histogram.count:
        raise ValueError("a histogram without finite values has no range to rebin over")
    low, high = histogram.min, histogram.max
    if low == high:
        counts = np.zeros(bins, dtype=np.int64)
        counts[bins // 2] = histogram.count
        half = abs(low) / 2 or 0.5
        return counts, low - half, high + half
    # Rounding the running total, not each bin, is what keeps the sum.
    points = 2 * np.linspace(low / 2, high / 2, bins + 1)  # halved, because high - low may be more than float64 holds
    cumulative = np.rint(histogram.cumulative_at(points))
    cumulative[0], cumulative[-1] = 0, histogram.count
    return np.diff(cumulative).astype(np.int64), low, high


def coarsen(histogram: Histogram, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Merge neighbouring bins until few are left: counts, int64 of shape ``[n]``, and float64 edges, ``[n + 1]``.

    Neighbours that are empty go first. The outermost edges are the minimum and the maximum, unless those are equal.
    """
    used = histogram.counts > 0
    starts = np.flatnonzero(used | np.append(True, used[:-1]))
    starts = starts[:: -(-len(starts) // bins)]
    has_range = histogram.min < histogram.max
    # An outermost bin whose values all lie on its inner edge would have no width: they belong to its neighbour as well.
    if has_range and len(starts) > 1 and histogram.max <= histogram.edges[starts[-1]]:
        starts = starts[:-1]
    if has_range and len(starts) > 1 and histogram.min >= histogram.edges[starts[1]]:
        starts = np.delete(starts, 1)
    edges = np.append(histogram.edges[starts], histogram.edges[-1])
    if has_range:
        edges[0], edges[-1] = histogram.min, histogram.max
    return np.add.reduceat(histogram.counts, starts), edges
