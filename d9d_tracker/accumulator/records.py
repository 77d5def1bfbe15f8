"""From the states of a window to the records a backend is handed."""

import functools
from operator import attrgetter

import numpy as np

from d9d_tracker.record import Histogram, Record
from d9d_tracker_kernels import CALLS, COUNT, LAST_STEP

from .host_window import HostWindow
from .reductions import finalize

# A named tuple's own constructor is Python code; while it runs here, for every point, the training thread waits.
_make_record = functools.partial(tuple.__new__, Record)


def records(window: HostWindow) -> list[Record]:
    """Return the points of a window in the order of their steps.

    Args:
        window: The states, complete: merged across ranks and with what was written before for the same step.

    Returns:
        A scalar record for every series and step with a value, a histogram record for every histogram series with a
        call, at the last step that contributed.
    """
    finished, histograms = _scalars(window), _histograms(window)
    return sorted([*finished, *histograms], key=attrgetter("step")) if histograms else finished


def _scalars(window: HostWindow) -> list[Record]:
    """Return the points in the order of rows. No loop of Python runs over them, which the training thread waits for."""
    rows, slots = np.nonzero(window.lanes[:, COUNT] > 0)
    if not rows.size:
        return []
    names = np.array([series.name for series in window.scalars], dtype=object)
    contexts = np.array([dict(series.context) for series in window.scalars], dtype=object)
    steps = np.array(window.steps, dtype=object)
    times = np.array([time or None for time in window.times], dtype=object)
    values = finalize(window.lanes, window.scalars)[rows, slots].tolist()
    fields = zip(names[slots], steps[rows], contexts[slots], values, times[rows], strict=True)
    return list(map(_make_record, fields))


def _histograms(window: HostWindow) -> list[Record]:
    began = dict(zip(window.steps, window.times, strict=True))
    return [
        Record(
            series.name,
            int(window.counts[slot, LAST_STEP]),
            dict(series.context),
            Histogram.from_cells(window.counts[slot], window.moments[slot], series.binning),
            began.get(int(window.counts[slot, LAST_STEP])) or None,
        )
        for slot, series in enumerate(window.histograms)
        if window.counts[slot, CALLS] > 0
    ]
