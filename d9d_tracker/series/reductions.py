"""How the values of a scalar series combine: how states merge, and what is read in the end."""

from collections.abc import Sequence

import numpy as np

from d9d_tracker_kernels.lanes import COUNT, LAST, MAX, NEGATED_MIN, WEIGHT

from .series import VALUE_LANE, Reduction, ScalarSeries


def merge_lanes(older: np.ndarray, newer: np.ndarray) -> np.ndarray:
    """Merge two states of the same slots, of which ``newer`` came after; float64 of shape ``[LANES, slots]``."""
    merged = np.empty_like(older)
    merged[: COUNT + 1] = older[: COUNT + 1] + newer[: COUNT + 1]
    merged[MAX : NEGATED_MIN + 1] = np.maximum(older[MAX : NEGATED_MIN + 1], newer[MAX : NEGATED_MIN + 1])
    merged[LAST] = np.where(newer[COUNT] > 0, newer[LAST], older[LAST])
    return merged


def has_value(lanes: np.ndarray, scalars: Sequence[ScalarSeries]) -> np.ndarray:
    """Return which states, float64 of shape ``[rows, LANES, slots]``, make a point, as booleans ``[rows, slots]``.

    Those of some value do, but for a mean of nothing, of no tokens for example.
    """
    is_mean = np.array([series.reduce == "mean" for series in scalars], dtype=bool)
    return (lanes[:, COUNT] > 0) & ~(is_mean & (lanes[:, WEIGHT] == 0))


def finalize(lanes: np.ndarray, scalars: Sequence[ScalarSeries]) -> np.ndarray:
    """Turn states, float64 of shape ``[rows, LANES, slots]``, into the values of their points, ``[rows, slots]``.

    They are meaningless where no value was merged in. The parts of a sum stay powers.
    """
    reductions: list[Reduction] = [series.reduce for series in scalars]
    chosen = np.array([VALUE_LANE[reduce] for reduce in reductions], dtype=np.int64)
    values = lanes[:, chosen, np.arange(len(reductions))]
    means, least = ([slot for slot, reduce in enumerate(reductions) if reduce == kind] for kind in ("mean", "min"))
    values[:, least] *= -1.0
    with np.errstate(invalid="ignore", divide="ignore"):
        values[:, means] /= lanes[:, WEIGHT, means]
        for slot, series in enumerate(scalars):
            if series.root != 1.0 and not series.sums:
                values[:, slot] **= 1 / series.root
    return values
