"""From the states of a window to the records a backend is handed."""

import torch

from d9d_tracker.record import Histogram, Record
from d9d_tracker_kernels import CALLS, LAST_STEP

from .scalars import COUNT, finalize
from .window import HostWindow


def records(window: HostWindow) -> list[Record]:
    """Return the points of a window in the order of their steps.

    Args:
        window: The states, complete: merged across ranks and with what was written before for the same step.

    Returns:
        A scalar record for every series and step with a value, a histogram record for every histogram series with a
        call, at the last step that contributed.
    """
    finished = [*_scalars(window), *_histograms(window)]
    return sorted(finished, key=lambda record: record.step)


def _scalars(window: HostWindow) -> list[Record]:
    return [
        Record(series.name, step, dict(series.context), finalize(window.lanes[row, :, slot], series.reduce))
        for row, step in enumerate(window.steps)
        for slot, series in enumerate(window.scalars)
        if window.lanes[row, COUNT, slot] > 0
    ]


def _histograms(window: HostWindow) -> list[Record]:
    return [
        Record(
            series.name,
            int(window.counts[slot, LAST_STEP]),
            dict(series.context),
            Histogram.from_cells(
                torch.from_numpy(window.counts[slot]), torch.from_numpy(window.moments[slot]), series.binning
            ),
        )
        for slot, series in enumerate(window.histograms)
        if window.counts[slot, CALLS] > 0
    ]
