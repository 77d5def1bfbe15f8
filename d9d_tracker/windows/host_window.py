"""The states of a window on the host, and how states merge: of later steps, and of other ranks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from d9d_tracker.series.series import AnySeries, HistogramSeries, ScalarSeries, label
from d9d_tracker_kernels.binning import CALLS, CELLS, HEADER, LAST_STEP, MOMENTS, Moment
from d9d_tracker_kernels.lanes import COUNT, LANES, LAST, MAX, NEGATED_MIN

_COLUMNS = HEADER + CELLS


@dataclass
class HostWindow:
    """The states of a window, on the host.

    Attributes:
        index: How many windows of the run came before.
        steps: The step of each row.
        times: When each of these steps began on the host, in seconds since the epoch.
        lanes: Scalar states, float64 of shape ``[rows, LANES, scalars]``.
        counts: Histogram headers and cells, int64 of shape ``[histograms, HEADER + CELLS]``.
        moments: Histogram moments, float64 of shape ``[histograms, 4]``.
        scalars: The scalar series, in the order of the slots.
        histograms: The histogram series, in the order of the slots.
    """

    index: int
    steps: list[int]
    times: list[float]
    lanes: np.ndarray
    counts: np.ndarray
    moments: np.ndarray
    scalars: list[ScalarSeries]
    histograms: list[HistogramSeries]

    @classmethod
    def of(
        cls,
        numbers: np.ndarray,
        index: int,
        steps: list[int],
        times: list[float],
        scalars: list[ScalarSeries],
        histograms: list[HistogramSeries],
    ) -> Self:
        """Unpack, as views, lanes, moments and counts one after the other: float64 of one dimension, or more of it."""
        moments = len(steps) * LANES * len(scalars)
        counts = moments + len(histograms) * MOMENTS
        end = counts + len(histograms) * _COLUMNS
        return cls(
            index,
            steps,
            times,
            numbers[:moments].reshape(len(steps), LANES, len(scalars)),
            numbers[counts:end].view(np.int64).reshape(len(histograms), _COLUMNS),
            numbers[moments:counts].reshape(len(histograms), MOMENTS),
            scalars,
            histograms,
        )

    def pack(self) -> bytes:
        """Return the numbers that ``of`` unpacks."""
        return b"".join(np.ascontiguousarray(array).tobytes() for array in (self.lanes, self.moments, self.counts))

    def copy(self) -> Self:
        """Return a window that owns its numbers."""
        return replace(self, lanes=self.lanes.copy(), counts=self.counts.copy(), moments=self.moments.copy())

    def only(self, scalars: np.ndarray, histograms: np.ndarray) -> Self:
        """Return the window of some of the series."""
        return replace(
            self,
            lanes=self.lanes[:, :, scalars],
            counts=self.counts[histograms],
            moments=self.moments[histograms],
            scalars=[self.scalars[slot] for slot in scalars],
            histograms=[self.histograms[slot] for slot in histograms],
        )

    def since(self, step: int) -> Self:
        """Return the rows of a step and later ones, with the histograms, which cannot be divided by steps."""
        if not self.steps or self.steps[0] >= step:
            return self
        rows = [row for row, one in enumerate(self.steps) if one >= step]
        steps, times = ([column[row] for row in rows] for column in (self.steps, self.times))
        counts = self.counts.copy()
        counts[:, LAST_STEP] = np.maximum(counts[:, LAST_STEP], step)
        return replace(self, steps=steps, times=times, lanes=self.lanes[rows], counts=counts)


def merge_lanes(older: np.ndarray, newer: np.ndarray) -> np.ndarray:
    """Merge two states of the same slots, of which ``newer`` came after; float64 of shape ``[LANES, slots]``."""
    merged = np.empty_like(older)
    merged[: COUNT + 1] = older[: COUNT + 1] + newer[: COUNT + 1]
    merged[MAX : NEGATED_MIN + 1] = np.maximum(older[MAX : NEGATED_MIN + 1], newer[MAX : NEGATED_MIN + 1])
    merged[LAST] = np.where(newer[COUNT] > 0, newer[LAST], older[LAST])
    return merged


def merge_moments(older: np.ndarray, newer: np.ndarray) -> np.ndarray:
    """Merge histogram moments: sum, sum of squares, minimum and maximum, float64 of shape ``[..., 4]``."""
    merged = older + newer
    merged[..., Moment.MIN] = np.minimum(older[..., Moment.MIN], newer[..., Moment.MIN])
    merged[..., Moment.MAX] = np.maximum(older[..., Moment.MAX], newer[..., Moment.MAX])
    return merged


def merge_windows(older: HostWindow, newer: HostWindow) -> HostWindow:
    """Merge the windows of two groups of ranks: rows by step, series by name and context.

    Sums, weights and counts add up in float64, extremes take the larger or smaller (NaN runs through), last is the
    value of ``newer`` where it has one, histograms add up in int64. A series or a step that one side lacks contributes
    nothing. A series whose reduction or binning differs keeps the values of ``older`` alone: see ``contradictions``.
    The result has the index of ``older``, the window of the lower ranks, and may share arrays with it.
    """
    if not newer.steps and not newer.histograms:
        return older
    steps, times = older.steps, older.times
    if steps != newer.steps:
        began = dict(zip(newer.steps, newer.times, strict=True)) | dict(zip(older.steps, older.times, strict=True))
        steps, times = sorted(began), [began[step] for step in sorted(began)]
    scalars = union_of_series(older.scalars, newer.scalars)
    histograms = union_of_series(older.histograms, newer.histograms)
    rows_and_slots = (steps, times, scalars, histograms)
    older, newer = arranged(older, *rows_and_slots), arranged(newer, *rows_and_slots)
    lanes = merge_lanes(np.moveaxis(older.lanes, 1, 0), np.moveaxis(newer.lanes, 1, 0))
    counts = older.counts + newer.counts
    counts[:, LAST_STEP] = np.maximum(older.counts[:, LAST_STEP], newer.counts[:, LAST_STEP])
    lanes, moments = np.ascontiguousarray(np.moveaxis(lanes, 0, 1)), merge_moments(older.moments, newer.moments)
    return HostWindow(older.index, steps, times, lanes, counts, moments, scalars, histograms)


def joined(windows: Sequence[HostWindow]) -> HostWindow:
    """Return windows that follow each other as one, rows below rows, with a slot for each histogram that has counts.

    Args:
        windows: Each has the first of the scalar series of the last one. They are not changed.
    """
    made, row = empty_window(windows[-1].index, [], [], windows[-1].scalars, []), 0
    for window in windows:
        made.steps += window.steps
        made.times += window.times
    made.lanes = empty_window(0, made.steps, made.times, made.scalars, []).lanes
    for window in windows:
        made.lanes[row : row + len(window.steps), :, : len(window.scalars)] = window.lanes
        row += len(window.steps)
    used = [one.only(np.arange(0), np.flatnonzero(one.counts[:, CALLS] > 0)) for one in windows if one.histograms]
    made.counts = np.concatenate([made.counts, *(one.counts for one in used)])
    made.moments = np.concatenate([made.moments, *(one.moments for one in used)])
    made.histograms = [series for one in used for series in one.histograms]
    return made


def empty_window(
    index: int, steps: list[int], times: list[float], scalars: list[ScalarSeries], histograms: list[HistogramSeries]
) -> HostWindow:
    """Return a window in which nothing was logged: the identity of ``merge_windows``."""
    lanes = np.zeros((len(steps), LANES, len(scalars)))
    lanes[:, MAX : NEGATED_MIN + 1] = -math.inf
    moments = np.zeros((len(histograms), MOMENTS))
    moments[:, Moment.MIN], moments[:, Moment.MAX] = math.inf, -math.inf
    counts = np.zeros((len(histograms), _COLUMNS), dtype=np.int64)
    return HostWindow(index, steps, times, lanes, counts, moments, scalars, histograms)


def union_of_series(older: list[AnySeries], newer: list[AnySeries]) -> list[AnySeries]:
    """Return the series of both sides by name and context: those of ``older`` first, the same list if they agree."""
    if older == newer:
        return older
    known = {(series.name, series.context) for series in older}
    return [*older, *(series for series in newer if (series.name, series.context) not in known)]


def contradictions(older: Sequence[AnySeries], newer: Sequence[AnySeries]) -> list[str]:
    """Return, in words, the series whose reduction or binning differs between two sides."""
    if older == newer:
        return []
    known = {(series.name, series.context): series for series in older}
    pairs = [(known.get((series.name, series.context), series), series) for series in newer]
    return [
        f"{label(one.name, one.context)} is logged with {one.describe()} on some ranks and with {other.describe()} on "
        "others, whose values are left out; log it alike on all ranks"
        for one, other in pairs
        if one != other
    ]


def arranged(
    window: HostWindow,
    steps: list[int],
    times: list[float],
    scalars: list[ScalarSeries],
    histograms: list[HistogramSeries],
) -> HostWindow:
    """Return a window with more rows and slots, in which nothing was logged: those of ``merge_windows``."""
    if (window.steps, window.scalars, window.histograms) == (steps, scalars, histograms):
        return window
    wide = empty_window(window.index, steps, times, scalars, histograms)
    row_of = {step: row for row, step in enumerate(steps)}
    rows = [row_of[step] for step in window.steps]
    slots, sources = _slots(window.scalars, scalars)
    wide.lanes[np.ix_(rows, range(LANES), slots)] = window.lanes[:, :, sources]
    slots, sources = _slots(window.histograms, histograms)
    wide.counts[slots], wide.moments[slots] = window.counts[sources], window.moments[sources]
    return wide


def _slots(own: Sequence[AnySeries], wide: Sequence[AnySeries]) -> tuple[list[int], list[int]]:
    """Return where the own series are in the union, and which of them: not those whose definition differs there."""
    slot_of = {(series.name, series.context): slot for slot, series in enumerate(wide)}
    slots, sources = [], []
    for source, series in enumerate(own):
        slot = slot_of[series.name, series.context]
        if wide[slot] == series:
            slots.append(slot)
            sources.append(source)
    return slots, sources
