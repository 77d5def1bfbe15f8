"""Which binning a finished histogram was counted by, so that it can merge with others."""

import contextlib
import functools
from collections.abc import Callable

import numpy as np

from d9d_tracker.config import Binning, ExponentialBinning, IntegerBinning, LinearBinning
from d9d_tracker.record import Histogram


def find_binning(histogram: Histogram, preferred: Binning) -> Binning | None:
    """Return a binning that has a histogram's bins, if there is one: exponential, of integers, or of equal bins."""
    edges = histogram.edges
    candidates: list[Callable[[], Binning]] = [
        lambda: preferred,
        *[functools.partial(ExponentialBinning, mantissa_bits=bits) for bits in (2, 1, 0)],
        lambda: IntegerBinning(bins=int(edges[-1])),
        lambda: LinearBinning(low=edges[0], high=edges[-1], bins=len(edges) - 1),
    ]
    bounds = _bounds_of_bins(histogram)
    for candidate in candidates:
        with contextlib.suppress(ValueError):
            binning = candidate()
            kept = _bounds_of_bins(Histogram.from_cells(*histogram.to_cells(binning), binning))
            if kept.shape == bounds.shape and np.allclose(kept, bounds, rtol=1e-6, atol=1e-6 * np.ptp(edges)):
                return binning
    return None


def _bounds_of_bins(histogram: Histogram) -> np.ndarray:
    """Return both ends of every bin that is not empty, of shape ``[2, bins]``."""
    used = np.flatnonzero(histogram.counts)
    return np.stack((histogram.edges[used], histogram.edges[used + 1]))
