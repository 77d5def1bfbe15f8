"""Running totals of rates: of all ranks, and of earlier lives of the run."""

from dataclasses import replace

import numpy as np

from d9d_tracker.series.series import ContextItems, ScalarSeries
from d9d_tracker_kernels.lanes import COUNT, LANES, LAST, SUM, WEIGHT

from .host_window import HostWindow

Counted = dict[tuple[str, ContextItems], float]


class Totals:
    """What has been ``counted`` and delivered so far, by name and context; it is replaced, never changed."""

    def __init__(self, before: Counted):
        self.counted = before

    def added_to(self, window: HostWindow) -> HostWindow:
        """Return what all ranks logged since the window before, with the totals after steps in which they counted."""
        slots = [at for at, one in enumerate(window.scalars) if one.sums and (f"{one.name}/s", 1) in one.sums]
        if not slots or not window.steps:
            return window
        keys = [(window.scalars[slot].name, window.scalars[slot].context) for slot in slots]
        has = window.lanes[:, COUNT, slots] > 0
        counts = np.where(has, window.lanes[:, SUM, slots], 0.0)
        totals = np.array([self.counted.get(key, 0.0) for key in keys]) + counts.cumsum(axis=0)
        self.counted = self.counted | dict(zip(keys, totals[-1].tolist(), strict=True))
        lanes = np.zeros((len(window.steps), LANES, len(slots)))
        lanes[:, LAST], lanes[:, WEIGHT], lanes[:, COUNT] = totals, has, has
        series = [ScalarSeries(name, context, "last") for name, context in keys]
        return replace(window, lanes=np.concatenate((window.lanes, lanes), axis=2), scalars=[*window.scalars, *series])
