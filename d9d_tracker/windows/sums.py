"""Series that are sums of others: the norm of a model, a layer or a ratio, of the norms of parameters.

A parameter's norm is of all its shards, and a model's of all its parameters, which may be on different ranks, and with
different optimizers. So each parameter has a slot, with its powers; they are summed when all ranks' windows have met.
"""

from dataclasses import replace

import numpy as np

from d9d_tracker.series.reductions import finalize, has_value
from d9d_tracker.series.registry import ContextItems, ScalarSeries
from d9d_tracker_kernels import COUNT, LANES, SUM, WEIGHT

from .host_window import HostWindow


def summed(window: HostWindow) -> HostWindow:
    """Return a window with the sums in the place of the series that go into them.

    A sum is of those of its parts that have a value in the step; of a ratio, both sides must have one.
    """
    parts = [slot for slot, series in enumerate(window.scalars) if series.sums]
    if not parts:
        return window
    sides, (powers, is_there) = _sides([window.scalars[slot] for slot in parts]), _values(window, parts)
    columns = [column for own in sides.values() for column in own]
    starts = np.cumsum([0, *(len(own) for own in sides.values())])[:-1]
    powers = np.where(is_there, powers, 0.0)[:, columns]
    has_side = np.logical_or.reduceat(is_there[:, columns], starts, axis=1)
    first = [window.scalars[parts[own[0]]] for own in sides.values()]
    is_max = np.array([series.reduce == "max" for series in first])
    with np.errstate(all="ignore"):
        totals = np.where(is_max, np.maximum.reduceat(powers, starts, axis=1), np.add.reduceat(powers, starts, axis=1))
        if any(series.root != 1.0 for series in first):
            totals **= 1 / np.array([series.root for series in first])
        values, has_sum, scalars = _ratios(sides, totals, has_side)
    lanes = np.zeros((len(window.steps), LANES, len(scalars)))
    lanes[:, SUM] = np.where(has_sum, values, 0.0)
    lanes[:, WEIGHT] = lanes[:, COUNT] = has_sum
    others = [slot for slot, series in enumerate(window.scalars) if not series.sums]
    return replace(
        window,
        lanes=np.concatenate((window.lanes[:, :, others], lanes), axis=2),
        scalars=[*(window.scalars[slot] for slot in others), *scalars],
    )


_Side = tuple[str, ContextItems, int]


def _sides(parts: list[ScalarSeries]) -> dict[_Side, list[int]]:
    """Return which parts go into each sum, and on which side of a ratio."""
    sides: dict[_Side, list[int]] = {}
    for column, series in enumerate(parts):
        for name, side in series.sums:
            sides.setdefault((name, series.context, side), []).append(column)
    return sides


def _values(window: HostWindow, slots: list[int]) -> tuple[np.ndarray, np.ndarray]:
    lanes = window.lanes[:, :, slots]
    series = [replace(window.scalars[slot], root=1.0) for slot in slots]
    return finalize(lanes, series), has_value(lanes, series)


def _ratios(
    sides: dict[_Side, list[int]], totals: np.ndarray, has_side: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[ScalarSeries]]:
    column = {side: index for index, side in enumerate(sides)}
    above = [side for side in sides if side[2] == 1]
    values, has_sum = totals[:, [column[side] for side in above]], has_side[:, [column[side] for side in above]]
    for index, (name, context, _) in enumerate(above):
        below = column.get((name, context, -1))
        if below is not None:
            values[:, index] /= totals[:, below]
            has_sum[:, index] &= has_side[:, below]
    return values, has_sum, [ScalarSeries(name, context, "mean") for name, context, _ in above]
