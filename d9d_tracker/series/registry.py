"""The slots of series: which row of the device buffers belongs to which name and context."""

import threading
from collections.abc import Callable
from typing import Any, Generic

from d9d_tracker.context import ContextItems
from d9d_tracker.errors import TrackerValueError
from d9d_tracker.log import logger

from .series import AnySeries, ScalarSeries, label


class Registry(Generic[AnySeries]):
    """Gives every series of a run, which ``method`` logs, one of the slots that a field of the configuration grants.

    Attributes:
        series: The series, in the order of their slots.
        capacity: How many slots there are.
        dropped: How many values had no slot in this run.
        other: The registry of the other kind of series, with which it shares the names.
        replaced: Is told of a series that has got the slot of one that only might have been logged.
    """

    def __init__(self, capacity: int, capacity_field: str, method: str):
        self.series: list[AnySeries] = []
        self.capacity = capacity
        self.dropped = 0
        self.other: Registry[Any] | None = None
        self.replaced: Callable[[AnySeries, int], object] = lambda series, slot: None
        self._capacity_field = capacity_field
        self._method = method
        self._slots: dict[tuple[str, ContextItems], int] = {}
        self._unsure: set[tuple[str, ContextItems]] = set()
        self._lock = threading.RLock()  # several threads may log; and a signal handler, while its own thread holds it

    def clear(self) -> None:
        """Free all slots, for a new run."""
        self._slots.clear()
        self._unsure.clear()
        self.series.clear()
        self.dropped = 0

    def slot(self, series: AnySeries, is_sure: bool = True) -> int:
        """Return the slot of a series, giving it one when it is new; -1 if none is left, which is said once a run.

        Raises ``TrackerValueError`` if it was logged differently before. What only may be logged contradicts nothing.
        """
        key = (series.name, series.context)
        known = self._slots.get(key)
        if known is None:
            with self._lock:
                known = self._slots.get(key)
                if known is None:
                    known = self._add(key, series)
                    self._unsure |= set() if is_sure or known < 0 else {key}
        if key in self._unsure:
            self._unsure -= {key} if is_sure else set()
            before, self.series[known] = self.series[known], series
            if is_sure and before != series:
                self.replaced(series, known)
        if known >= 0 and (self.series[known] != series or _is_part(self.series[known]) != _is_part(series)):
            raise TrackerValueError(
                f"{label(series.name, series.context)} was logged with {self.series[known].describe()} before and now "
                f"with {series.describe()}: a series has one; use another name or context for the other"
            )
        if known >= 0 and _is_part(series):  # whose sums may change
            self.series[known] = series
        return known

    def _add(self, key: tuple[str, ContextItems], series: AnySeries) -> int:
        if self.other is not None and key in self.other._slots and key not in self.other._unsure:
            raise TrackerValueError(
                f"{label(*key)} was logged with {self.other._method} before, and some backends have room for one of "
                "them only; use another name or context for the other"
            )
        if len(self.series) >= self.capacity:
            self.dropped += 1
            if self.dropped == 1:
                logger.error(
                    "no slot left for %s, all %d are taken: it and all further ones are dropped; raise accumulator.%s",
                    label(*key),
                    self.capacity,
                    self._capacity_field,
                )
            return -1
        slot = len(self.series)
        self.series.append(series)
        while self.series[slot] is not series:  # the handler has added others
            slot += 1
        self._slots[key] = slot
        return slot


def _is_part(series: AnySeries) -> bool:
    return isinstance(series, ScalarSeries) and bool(series.sums)
