"""Merging what two groups of ranks logged in the same window."""

import math
from collections.abc import Sequence

import numpy as np

from d9d_tracker.accumulator.registry import AnySeries, HistogramSeries, ScalarSeries, label
from d9d_tracker.accumulator.scalars import LANES, MAX, NEGATED_MIN, merge_lanes
from d9d_tracker.accumulator.window import HostWindow, merge_moments
from d9d_tracker_kernels import CELLS, HEADER, LAST_STEP, MOMENTS
from d9d_tracker_kernels import MAX as LARGEST
from d9d_tracker_kernels import MIN as SMALLEST


def merge_windows(older: HostWindow, newer: HostWindow) -> HostWindow:
    """Merge the windows of two groups of ranks: rows by step, series by name and context.

    Sums, weights and counts add up in float64, extremes take the larger or smaller (NaN runs through), last is the
    value of ``newer`` where it has one, histograms add up in int64. A series or a step that one side lacks contributes
    nothing. A series whose reduction or binning differs keeps the values of ``older`` alone: see ``contradictions``.

    Args:
        older: Window of the lower ranks.
        newer: Window of the higher ranks.

    Returns:
        The window that all their values would have given, with the index of ``older``. It may share arrays with it.
    """
    if not newer.steps and not newer.histograms:
        return older
    steps = older.steps if older.steps == newer.steps else sorted({*older.steps, *newer.steps})
    scalars = union_of_series(older.scalars, newer.scalars)
    histograms = union_of_series(older.histograms, newer.histograms)
    older, newer = _arranged(older, steps, scalars, histograms), _arranged(newer, steps, scalars, histograms)
    lanes = merge_lanes(np.moveaxis(older.lanes, 1, 0), np.moveaxis(newer.lanes, 1, 0))
    counts = older.counts + newer.counts
    counts[:, LAST_STEP] = np.maximum(older.counts[:, LAST_STEP], newer.counts[:, LAST_STEP])
    return HostWindow(
        index=older.index,
        steps=steps,
        lanes=np.ascontiguousarray(np.moveaxis(lanes, 0, 1)),
        counts=counts,
        moments=merge_moments(older.moments, newer.moments),
        scalars=scalars,
        histograms=histograms,
    )


def empty_window(
    index: int, steps: list[int], scalars: list[ScalarSeries], histograms: list[HistogramSeries]
) -> HostWindow:
    """Return a window in which nothing was logged: the identity of ``merge_windows``."""
    lanes = np.zeros((len(steps), LANES, len(scalars)))
    lanes[:, MAX : NEGATED_MIN + 1] = -math.inf
    moments = np.zeros((len(histograms), MOMENTS))
    moments[:, SMALLEST], moments[:, LARGEST] = math.inf, -math.inf
    return HostWindow(
        index=index,
        steps=steps,
        lanes=lanes,
        counts=np.zeros((len(histograms), HEADER + CELLS), dtype=np.int64),
        moments=moments,
        scalars=scalars,
        histograms=histograms,
    )


def union_of_series(older: list[AnySeries], newer: list[AnySeries]) -> list[AnySeries]:
    """Return the series of both sides by name and context: those of ``older`` first, and the same list if they agree.

    Args:
        older: Series of one side; its definition holds where the sides differ.
        newer: Series of the other side.
    """
    if older == newer:
        return older
    known = {(series.name, series.context) for series in older}
    return [*older, *(series for series in newer if (series.name, series.context) not in known)]


def contradictions(older: Sequence[AnySeries], newer: Sequence[AnySeries]) -> list[str]:
    """Return, in words, the series whose reduction or binning differs between two sides.

    Args:
        older: Series of one side.
        newer: Series of the other side.
    """
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


def _arranged(
    window: HostWindow, steps: list[int], scalars: list[ScalarSeries], histograms: list[HistogramSeries]
) -> HostWindow:
    if (window.steps, window.scalars, window.histograms) == (steps, scalars, histograms):
        return window
    wide = empty_window(window.index, steps, scalars, histograms)
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
