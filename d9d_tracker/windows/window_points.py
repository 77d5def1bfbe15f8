"""From the states of a window to the points a backend is handed.

With what was written of a step that went on, with the running totals of rates, of all ranks and earlier lives, and with
sums in the place of their parts: the norm of a model, a layer or a ratio, of the norms of parameters. A parameter's
norm is of all its shards, and a model's of all its parameters, which may be on different ranks, and with different
optimizers. So each parameter has a slot, with its powers; they are summed when all ranks' windows have met.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

import numpy as np

from d9d_tracker.points import Points
from d9d_tracker.record import Histogram, Record
from d9d_tracker.series.series import VALUE_LANE, ContextItems, HistogramSeries, Reduction, ScalarSeries
from d9d_tracker_kernels.binning import CALLS, CELLS, HEADER, LAST_STEP, MOMENTS
from d9d_tracker_kernels.lanes import COUNT, LANES, LAST, SUM, WEIGHT

from .host_window import HostWindow, merge_lanes, merge_moments

Key = tuple[str, ContextItems]
_Side = tuple[str, ContextItems, int]  # of a ratio: 1 above, -1 below
Counted = dict[Key, float]


def with_totals(window: HostWindow, counted: Counted) -> tuple[HostWindow, Counted]:
    """Return a window that follows what was counted so far with the running totals of rates, and what is counted now.

    Args:
        window: What all ranks have logged since the window before.
        counted: What was counted and delivered before, by name and context; it is not changed.
    """
    slots = [at for at, one in enumerate(window.scalars) if one.sums and (f"{one.name}/s", 1) in one.sums]
    if not slots or not window.steps:
        return window, counted
    keys = [(window.scalars[slot].name, window.scalars[slot].context) for slot in slots]
    has = window.lanes[:, COUNT, slots] > 0
    counts = np.where(has, window.lanes[:, SUM, slots], 0.0)
    totals = np.array([counted.get(key, 0.0) for key in keys]) + counts.cumsum(axis=0)
    lanes = np.zeros((len(window.steps), LANES, len(slots)))
    lanes[:, LAST], lanes[:, WEIGHT], lanes[:, COUNT] = totals, has, has
    series = [ScalarSeries(name, context, "last") for name, context in keys]
    made = replace(window, lanes=np.concatenate((window.lanes, lanes), axis=2), scalars=[*window.scalars, *series])
    return made, counted | dict(zip(keys, totals[-1].tolist(), strict=True))


@dataclass
class Tail:
    """What was written for a step that has not ended, because ``flush`` was called in its middle.

    A value logged for that step later must merge with what was written, not stand beside it.

    Attributes:
        step: The step.
        time: When it began on the host, in seconds since the epoch.
        lanes: Lanes of each scalar series that was written, float64 of shape ``[LANES]``.
        counts: Header and cells of each histogram series that was written, int64 of shape ``[HEADER + CELLS]``.
        moments: Moments of each histogram series that was written, float64 of shape ``[4]``.
        late: Points of ``log_at``, which replace those of the same series.
    """

    step: int
    time: float
    lanes: dict[ScalarSeries, np.ndarray] = field(default_factory=dict)
    counts: dict[HistogramSeries, np.ndarray] = field(default_factory=dict)
    moments: dict[HistogramSeries, np.ndarray] = field(default_factory=dict)
    late: list[Record] = field(default_factory=list)

    def merge_into(self, window: HostWindow) -> None:
        """Merge what was written into the points of the same step of a later window, in place."""
        for row, step in enumerate(window.steps):
            if step != self.step:
                continue
            has_value = window.lanes[row, COUNT] > 0
            # A sum is written anew from all its parts.
            sums = {name for slot in np.flatnonzero(has_value) for name, _ in window.scalars[slot].sums}
            for slot, series in enumerate(window.scalars):
                if series in self.lanes and (has_value[slot] or any(name in sums for name, _ in series.sums)):
                    older, newer = self.lanes[series][:, None], window.lanes[row, :, slot, None]
                    window.lanes[row, :, slot] = merge_lanes(older, newer)[:, 0]
        for slot, series in enumerate(window.histograms):
            counts = window.counts[slot]
            if series in self.counts and counts[CALLS] > 0 and counts[LAST_STEP] == self.step:
                counts += self.counts[series]
                counts[LAST_STEP] = self.step
                window.moments[slot] = merge_moments(self.moments[series], window.moments[slot])

    def as_window(self) -> HostWindow:
        """Return what was written as a window of its own, to write it again."""
        lanes, histograms = list(self.lanes.values()), list(self.counts)
        return HostWindow(
            0,
            [self.step],
            [self.time],
            np.array(lanes).reshape(1, len(lanes), LANES).transpose(0, 2, 1),
            np.array(list(self.counts.values()), dtype=np.int64).reshape(len(histograms), HEADER + CELLS),
            np.array([self.moments[series] for series in histograms]).reshape(len(histograms), MOMENTS),
            list(self.lanes),
            histograms,
        )

    @classmethod
    def of(cls, window: HostWindow, before: "Tail | None") -> "Tail":
        """Collect what a window, with ``before`` merged in, and earlier ones have written for its last step."""
        tail = cls(window.steps[-1], window.times[-1])
        if before is not None and before.step == tail.step:
            tail.lanes, tail.counts, tail.moments = dict(before.lanes), dict(before.counts), dict(before.moments)
        for slot in np.flatnonzero(window.lanes[-1, COUNT] > 0):
            tail.lanes[window.scalars[slot]] = window.lanes[-1, :, slot].copy()
        for slot in np.flatnonzero((window.counts[:, CALLS] > 0) & (window.counts[:, LAST_STEP] == tail.step)):
            tail.counts[window.histograms[slot]] = window.counts[slot].copy()
            tail.moments[window.histograms[slot]] = window.moments[slot].copy()
        return tail


def points(window: HostWindow) -> Points:
    """Return the points of a window that is complete: merged across ranks, and with what was written before."""
    scalars = window.scalars
    values, is_there, keys = summed(finalize(window.lanes, scalars), has_value(window.lanes, scalars), scalars)
    each, (_, slots) = np.count_nonzero(is_there, axis=1), np.nonzero(is_there)
    began, histograms = dict(zip(window.steps, window.times, strict=True)), list[Record]()
    for slot, series in enumerate(window.histograms):
        if window.counts[slot, CALLS] > 0:
            step = int(window.counts[slot, LAST_STEP])
            value = Histogram.from_cells(window.counts[slot], window.moments[slot], series.binning)
            histograms.append(Record(series.name, step, dict(series.context), value, began.get(step) or None))
    return Points(
        [(name, dict(context)) for name, context in keys],
        slots,
        np.array(window.steps, dtype=np.int64).repeat(each),
        np.array(window.times, dtype=np.float64).repeat(each),
        values[is_there],
        sorted(histograms, key=attrgetter("step")),
    )


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
    sides: dict[_Side, list[int]] = {}
    for slot in parts:
        for name, side in scalars[slot].sums:
            sides.setdefault((name, scalars[slot].context, side), []).append(slot)
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
