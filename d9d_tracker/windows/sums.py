"""Series that are sums of others: the norm of a model, a layer or a ratio, of the norms of parameters.

A parameter's norm is of all its shards, and a model's of all its parameters, which may be on different ranks, and with
different optimizers. So each parameter has a slot, with its powers; they are summed when all ranks' windows have met.
"""

from collections.abc import Sequence

import numpy as np

from d9d_tracker.series.series import ContextItems, ScalarSeries

Key = tuple[str, ContextItems]


def summed(
    values: np.ndarray, is_there: np.ndarray, scalars: Sequence[ScalarSeries]
) -> tuple[np.ndarray, np.ndarray, list[Key]]:
    """Return values with the sums in the place of the series that go into them, where they are, and their series.

    A sum is of those of its parts that have a value in the step; of a ratio, both sides must have one.

    Args:
        values: Float64 of shape ``[rows, slots]``, of parts the powers.
        is_there: Where there is a value, booleans of that shape.
        scalars: The series, in the order of the slots.
    """
    keys = [(series.name, series.context) for series in scalars]
    parts = [slot for slot, series in enumerate(scalars) if series.sums]
    if not parts:
        return values, is_there, keys
    sides = _sides(scalars, parts)
    slots = [slot for own in sides.values() for slot in own]
    starts = np.cumsum([0, *(len(own) for own in sides.values())])[:-1]
    has_side = np.logical_or.reduceat(is_there[:, slots], starts, axis=1)
    powers = np.where(is_there[:, slots], values[:, slots], 0.0)
    first = [scalars[own[0]] for own in sides.values()]
    is_max = np.array([series.reduce == "max" for series in first])
    with np.errstate(all="ignore"):
        totals = np.where(is_max, np.maximum.reduceat(powers, starts, axis=1), np.add.reduceat(powers, starts, axis=1))
        if any(series.root != 1.0 for series in first):
            totals **= 1 / np.array([series.root for series in first])
        sums, has_sum, made = _ratios(sides, totals, has_side)
    others = [slot for slot, series in enumerate(scalars) if not series.sums]
    return (
        np.concatenate((values[:, others], sums), axis=1),
        np.concatenate((is_there[:, others], has_sum), axis=1),
        [*(keys[slot] for slot in others), *made],
    )


_Side = tuple[str, ContextItems, int]


def _sides(scalars: Sequence[ScalarSeries], parts: list[int]) -> dict[_Side, list[int]]:
    """Return the slots of the parts that go into each sum, and on which side of a ratio."""
    sides: dict[_Side, list[int]] = {}
    for slot in parts:
        series = scalars[slot]
        for name, side in series.sums:
            sides.setdefault((name, series.context, side), []).append(slot)
    return sides


def _ratios(
    sides: dict[_Side, list[int]], totals: np.ndarray, has_side: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[Key]]:
    column = {side: index for index, side in enumerate(sides)}
    above = [side for side in sides if side[2] == 1]
    columns = [column[side] for side in above]
    values, has_sum = totals[:, columns], has_side[:, columns]
    for index, (name, context, _) in enumerate(above):
        below = column.get((name, context, -1))
        if below is not None:
            values[:, index] /= totals[:, below]
            has_sum[:, index] &= has_side[:, below]
    return values, has_sum, [side[:2] for side in above]
