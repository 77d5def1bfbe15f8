"""Fewer points that look like many."""

import numpy as np

_MOST_POINTS = 20_000
_MOST_MEANS = 500
_OUTLIERS = 50  # one in so many values, and one at least, is left out on both sides


def smoothed(steps: np.ndarray, values: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Return some hundred steps, and means of the values around them, float64 of the same shape; a spike stays narrow.

    What is not finite is left out, and of five values or more the outermost; towards both ends the means are of fewer.
    """
    centers = np.unique(np.linspace(0, len(values) - 1, min(_MOST_MEANS, len(values))).round().astype(int))
    halves = np.minimum(points // 2, np.minimum(centers, len(values) - 1 - centers))
    parts = (values[center - half : center + half + 1] for center, half in zip(centers, halves, strict=True))
    return steps[centers], np.array([_mean(part[np.isfinite(part)]) for part in parts])


def _mean(values: np.ndarray) -> float:
    if values.size >= 5:
        outliers = max(1, values.size // _OUTLIERS)
        values = np.partition(values, (outliers, -outliers - 1))[outliers:-outliers]
    return float(values.mean()) if values.size else np.nan


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return at most some ten thousand points, by rising step, that look like all: the extremes of stretches."""
    if len(values) <= _MOST_POINTS:
        return steps, values
    width = -(-len(values) // (_MOST_POINTS // 2))
    whole = len(values) // width * width
    stretches = values[:whole].reshape(-1, width)
    begins = np.arange(0, whole, width)
    low = begins + np.where(np.isnan(stretches), np.inf, stretches).argmin(axis=1)
    high = begins + np.where(np.isnan(stretches), -np.inf, stretches).argmax(axis=1)
    kept = np.unique(np.concatenate((low, high, np.arange(whole, len(values)))))
    return steps[kept], values[kept]
