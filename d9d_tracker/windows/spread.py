"""Series of ``scope="spread"``: which rank is slow, or sees the NaN, by four series whatever the number of ranks.

A rank's value of a step is made of all that it logged there. So what a flush sent in the middle of a step is kept as it
was logged, and merged with what came later before it is expanded; the points of before are then written anew.
"""

from dataclasses import replace

import numpy as np

from d9d_tracker.series.series import Reduction, ScalarSeries
from d9d_tracker_kernels.lanes import COUNT, LANES, LAST, MAX, NEGATED_MIN, SUM, WEIGHT

from .host_window import HostWindow, arranged, merge_lanes, merge_windows
from .window_points import Tail, finalize, has_value

# Suffix, reduction across ranks, and the lane that holds the value.
_PARTS: tuple[tuple[str, Reduction, int], ...] = (
    ("min", "min", NEGATED_MIN),
    ("mean", "mean", SUM),
    ("max", "max", MAX),
    ("max_rank", "last", LAST),
)


def completed(window: HostWindow, tail: Tail | None) -> HostWindow:
    """Return a rank's window with what it had logged to such series for the same step before."""
    if tail is None or tail.step not in window.steps:
        return window
    slots = [slot for slot, series in enumerate(window.scalars) if series.spread and series in tail.lanes]
    lanes, row = window.lanes.copy(), window.steps.index(tail.step)
    for slot in slots:
        lanes[row, :, slot] = merge_lanes(tail.lanes[window.scalars[slot]][:, None], lanes[row, :, slot, None])[:, 0]
    return replace(window, lanes=lanes)


def of_spread(window: HostWindow, spread: bool) -> HostWindow:
    """Return the window of such series alone, or of all the others."""
    slots = [slot for slot, series in enumerate(window.scalars) if series.spread == spread]
    return window.only(np.array(slots, dtype=np.int64), np.arange(0 if spread else len(window.histograms)))


def expand(window: HostWindow, rank: int) -> HostWindow:
    """Replace each such series of a rank's window by what becomes of it with those of other ranks: see ``_PARTS``."""
    spread = [slot for slot, series in enumerate(window.scalars) if series.spread]
    if not spread:
        return window
    others = [slot for slot, series in enumerate(window.scalars) if not series.spread]
    values = finalize(window.lanes, window.scalars)[:, spread]
    has_point = has_value(window.lanes, window.scalars)[:, spread]
    lanes, series = [window.lanes[:, :, others]], [window.scalars[slot] for slot in others]
    for suffix, reduce, lane in _PARTS:
        part = np.zeros((len(window.steps), LANES, len(spread)))
        part[:, MAX : NEGATED_MIN + 1] = -np.inf
        part[:, WEIGHT] = part[:, COUNT] = has_point
        value = {"min": -values, "max_rank": np.full_like(values, rank)}.get(suffix, values)
        part[:, lane] = np.where(has_point, value, part[:, lane])
        lanes.append(part)
        series += [
            ScalarSeries(f"{window.scalars[slot].name}/{suffix}", window.scalars[slot].context, reduce, spread=True)
            for slot in spread
        ]
    return replace(window, lanes=np.concatenate(lanes, axis=2), scalars=series)


def rank_columns(scalars: list[ScalarSeries]) -> tuple[list[int], list[int]]:
    """Return the slots of the ranks of the largest values, and of these values."""
    slot_of = {(series.name, series.context): slot for slot, series in enumerate(scalars) if series.spread}
    pairs = [
        (slot, slot_of[name.removesuffix("_rank"), context])
        for (name, context), slot in slot_of.items()
        if name.endswith("/max_rank")
    ]
    return [rank for rank, _ in pairs], [largest for _, largest in pairs]


def merge_expanded(older: HostWindow, newer: HostWindow) -> HostWindow:
    """Merge expanded windows, see ``merge_windows``; of largest values that are equal the higher rank counts."""
    merged = merge_windows(older, newer)
    ranks, values = rank_columns(merged.scalars)
    if not ranks or merged is older:
        return merged
    layout = (merged.steps, merged.times, merged.scalars, merged.histograms)
    sides = [arranged(side, *layout).lanes for side in (older, newer)]
    has, most, whose = (
        [side[:, lane][:, slots] for side in sides] for lane, slots in ((COUNT, values), (MAX, values), (LAST, ranks))
    )
    is_nan = [np.isnan(side) for side in most]
    is_equal = (most[1] == most[0]) | (is_nan[0] & is_nan[1])
    is_more = (is_nan[1] & ~is_nan[0]) | (most[1] > most[0])
    takes_newer = (has[1] > 0) & ((has[0] == 0) | is_more | (is_equal & (whose[1] > whose[0])))
    merged.lanes[:, LAST, ranks] = np.where(takes_newer, whose[1], whose[0])
    return merged
