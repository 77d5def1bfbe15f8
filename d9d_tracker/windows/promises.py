"""Series that a watch has promised: what has counted nothing by the end of the first full window is said."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from d9d_tracker.log import logger
from d9d_tracker_kernels.binning import CALLS
from d9d_tracker_kernels.lanes import COUNT

from .host_window import HostWindow

_MOST_NAMED = 5


@dataclass
class _Promise:
    missing: set[str]
    from_step: int
    to_step: int
    why: Callable[[], str]


class Promises:
    """What the watches of a run have promised, ``pending`` until a window holds it. Windows come on another thread."""

    def __init__(self):
        self.pending: list[_Promise] = []
        self._lock = threading.Lock()

    def add(self, names: Iterable[str], step: int, every: int, why: Callable[[], str]) -> None:
        """Promise series, whose first value may be ``every`` steps away; ``why`` says what the watch has met."""
        with self._lock:
            # Of the current step, what would have counted may have run already.
            self.pending.append(_Promise(set(names), step, step + max(every, 2) - 1, why))

    def withdraw(self, names: Iterable[str]) -> None:
        """Promise series no longer, by their names: they are watched no longer, or other ranks count what is here."""
        if not self.pending:
            return
        withdrawn = set(names)
        with self._lock:
            for promise in self.pending:
                promise.missing -= withdrawn

    def look(self, window: HostWindow) -> None:
        """Cross out what a window holds, and say what is missing if it was a full one."""
        if not window.steps:
            return
        counted = {window.histograms[slot].name for slot in np.flatnonzero(window.counts[:, CALLS] > 0)}
        counted |= {window.scalars[slot].name for slot in np.flatnonzero((window.lanes[:, COUNT] > 0).any(axis=0))}
        with self._lock:
            for promise in list(self.pending):
                promise.missing -= counted
                is_full = window.steps[0] >= promise.from_step and window.steps[-1] >= promise.to_step
                if is_full or not promise.missing:
                    self.pending.remove(promise)
                    _say(promise, window)


def _say(promise: _Promise, window: HostWindow) -> None:
    missing = sorted(promise.missing)
    if missing:
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        logger.warning(
            "watch: by step %d, nothing was counted of %s%s: %s",
            window.steps[-1],
            ", ".join(missing[:_MOST_NAMED]),
            more,
            promise.why(),
        )
