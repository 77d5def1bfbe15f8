"""From the states of a window to the points a backend is handed."""

from operator import attrgetter

import numpy as np

from d9d_tracker.points import Points
from d9d_tracker.record import Histogram, Record
from d9d_tracker.series.reductions import finalize, has_value
from d9d_tracker_kernels.binning import CALLS, LAST_STEP

from .host_window import HostWindow
from .sums import summed


def points(window: HostWindow) -> Points:
    """Return the points of a window that is complete: merged across ranks, and with what was written before."""
    scalars = window.scalars
    values, is_there, keys = summed(finalize(window.lanes, scalars), has_value(window.lanes, scalars), scalars)
    each, (_, slots) = np.count_nonzero(is_there, axis=1), np.nonzero(is_there)
    return Points(
        [(name, dict(context)) for name, context in keys],
        slots,
        np.array(window.steps, dtype=np.int64).repeat(each),
        np.array(window.times, dtype=np.float64).repeat(each),
        values[is_there],
        sorted(_histograms(window), key=attrgetter("step")),
    )


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
