"""Series that are not finite any more: found in the windows, so without a sync, and told once."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from d9d_tracker.delivery.report import NonFinite, RunReport
from d9d_tracker.log import logger
from d9d_tracker.ranks.ranks_in_words import spell
from d9d_tracker.record import Histogram, Record
from d9d_tracker.series.series import VALUE_LANE
from d9d_tracker.windows.host_window import HostWindow
from d9d_tracker.windows.plain import Plain
from d9d_tracker.windows.window_points import has_value
from d9d_tracker_kernels.binning import CALLS, HEADER, NAN, NEGINF, POSINF

_NOTE = Plain(list[NonFinite])
_NAMED = 5
Callback = Callable[[list[NonFinite]], object]


class NonFiniteWatch:
    """Finds what is not finite for the first time, and tells it: in the log, in the report, and to a callback.

    The callback gets it on a thread of its own; what it raises is logged.
    """

    def __init__(self, rank: int, has_ranks: bool, report: RunReport, callback: Callback | None):
        self._rank = rank
        self._ranks = (rank,) if has_ranks else ()
        self._report = report
        self._callback = callback
        self._found: set[tuple[str, frozenset[tuple[str, str]]]] = set()
        self._told: set[tuple[str, frozenset[tuple[str, str]]]] = set()
        self._calls: list[threading.Thread] = []
        self._own: list[NonFinite] = []
        self._heard: list[NonFinite] = []

    def look(self, window: HostWindow, parts: Sequence[HostWindow], late: Iterable[Record]) -> None:
        """Find what is not finite and was so far, tell it if alone: in a window, its parts' histograms, points."""
        self._own = []
        for found in (self._scalars(window), *map(self._histograms, parts), self._late(late)):
            new = [one for one in found if _key(one.name, one.context) not in self._found]
            self._found |= {_key(one.name, one.context) for one in new}
            self._own += new
        if not self._ranks:
            self.tell()

    def take_note(self) -> bytes:
        """Return what was found as JSON, to travel to rank 0; empty if there is nothing to tell."""
        return _NOTE.dump(self._own) if self._own else b""

    def hear(self, note: bytes) -> None:
        """Take what a rank has found."""
        self._heard += _NOTE.load(note) if note else []

    def tell(self, is_told_elsewhere: bool = False) -> None:
        """Tell what was found, each series once: what was heard from all ranks, or else what this one has found."""
        found, level = self._heard or self._own, logging.INFO if is_told_elsewhere else logging.WARNING
        self._heard, self._own = [], []
        joined: dict[tuple[str, frozenset[tuple[str, str]]], NonFinite] = {}
        for one in found:
            key = _key(one.name, one.context)
            if key not in self._told:
                joined[key] = joined[key].joined(one) if key in joined else one
        if not joined:
            return
        self._told |= set(joined)
        new = sorted(joined.values(), key=lambda one: one.first)
        self._report.nonfinite += new
        logger.log(level, "not finite for the first time: %s", in_words(new))
        if self._callback is not None:
            call = threading.Thread(target=self._call, args=(self._callback, new), name="d9d_tracker on_nonfinite")
            call.daemon = True
            try:
                call.start()
                self._calls.append(call)
            except RuntimeError as error:  # no thread is left, or the interpreter is on its way out
                logger.error("on_nonfinite is not called: %s", error)

    def close(self, timeout: float) -> None:
        """Wait so many seconds for the callback, at most."""
        deadline = time.monotonic() + timeout
        for call in self._calls:
            call.join(max(0.0, deadline - time.monotonic()))
            if call.is_alive():
                logger.error("on_nonfinite has not returned for %g s and is left to itself", timeout)
                return

    def _scalars(self, window: HostWindow) -> Iterable[NonFinite]:
        if not window.scalars:
            return
        lanes = [VALUE_LANE[series.reduce] for series in window.scalars]
        if all(np.isfinite(window.lanes[:, lane]).all() for lane in set(lanes)):
            return
        values = window.lanes[:, lanes, range(len(lanes))]
        broken = ~np.isfinite(values) & has_value(window.lanes, window.scalars)
        for slot in np.flatnonzero(broken.any(axis=0)).tolist():
            row = int(broken[:, slot].argmax())
            series, value = window.scalars[slot], values[row, slot]
            sign = -1.0 if series.reduce == "min" else 1.0  # whose lane holds the negated minimum
            step = window.steps[row]
            yield NonFinite(series.name, dict(series.context), step, step, str(float(sign * value)), ranks=self._ranks)

    def _histograms(self, window: HostWindow) -> Iterable[NonFinite]:
        if not window.histograms:
            return
        counts = window.counts
        infinite = counts[:, POSINF] + counts[:, NEGINF]
        for slot in np.flatnonzero((counts[:, CALLS] > 0) & (counts[:, NAN] + infinite > 0)).tolist():
            series = window.histograms[slot]
            nan, inf = int(counts[slot, NAN]), int(infinite[slot])
            elements = int(counts[slot, HEADER:].sum()) + nan + inf
            first, last = window.steps[0], window.steps[-1]
            yield NonFinite(series.name, dict(series.context), first, last, "", nan, inf, elements, self._ranks)

    def _late(self, records: Iterable[Record]) -> Iterable[NonFinite]:
        for name, step, context, value, _ in records:
            if not isinstance(value, Histogram):
                if not math.isfinite(value):
                    yield NonFinite(name, dict(context), step, step, str(value), ranks=self._ranks)
            elif (inf := value.posinf + value.neginf) + value.nan > 0:
                elements = value.count + value.nan + inf
                yield NonFinite(name, dict(context), step, step, "", value.nan, inf, elements, self._ranks)

    def _call(self, callback: Callback, found: list[NonFinite]) -> None:
        try:
            callback(found)
        except Exception:
            logger.exception("on_nonfinite raised; training goes on")


def in_words(found: list[NonFinite]) -> str:
    """Return what was found in words, the first few by name."""
    words = [f"{one} on {spell(one.ranks)}" if one.ranks else str(one) for one in found[:_NAMED]]
    if len(found) > _NAMED:
        words.append(f"and {len(found) - _NAMED} more series, in tracker.report.nonfinite")
    return "; ".join(words)


def _key(name: str, context: Mapping[str, str]) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(context.items())
