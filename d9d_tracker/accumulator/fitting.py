"""Which binning a finished histogram was counted by, so that it can merge with others."""

import contextlib
import functools
from collections.abc import Callable

import numpy as np

from d9d_tracker.config import Binning, ExponentialBinning, IntegerBinning, LinearBinning
from d9d_tracker.record import Histogram


def fitting(histogram: Histogram, preferred: Binning) -> Binning | None:
    """Return a binning that has a histogram's bins, if there is one: exponential, of integers, or of equal bins.

    Args:
        histogram: The histogram.
        preferred: What is tried first.
    """
    edges = histogram.edges
    candidates: list[Callable[[], Binning]] = [
        lambda: preferred,
        *[functools.partial(ExponentialBinning, mantissa_bits=bits) for bits in (2, 1, 0)],
        lambda: IntegerBinning(bins=int(edges[-1])),
        lambda: LinearBinning(low=edges[0], high=edges[-1], bins=len(edges) - 1),
    ]
    used = np.flatnonzero(histogram.counts)
    trimmed = edges[used[0] : used[-1] + 2] if used.size else edges[:1] * 0
    for candidate in candidates:
        with contextlib.suppress(ValueError):
            binning = candidate()
            counts, moments = histogram.to_cells(binning)
            kept = Histogram.from_cells(counts, moments, binning).edges
            if kept.shape == trimmed.shape and np.allclose(kept, trimmed, rtol=1e-6, atol=1e-6 * np.ptp(trimmed)):
                return binning
    return None
