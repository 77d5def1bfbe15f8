"""Series and their slots: which row of the device buffers belongs to which name and context."""

import threading
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from d9d_tracker.config import Binning
from d9d_tracker.errors import TrackerValueError

Reduction = Literal["mean", "sum", "min", "max", "last"]
REDUCTIONS: tuple[Reduction, ...] = ("mean", "sum", "min", "max", "last")

ContextItems = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class ScalarSeries:
    """A scalar series: name, context and how its values combine.

    ``root`` is the p of partial p-norms: the p-th root of what the lanes give is the value. ``spread`` is that of
    ``scope="spread"``.
    """

    name: str
    context: ContextItems
    reduce: Reduction
    root: float = 1.0
    spread: bool = False

    def describe(self) -> str:
        """Return what must not change between two calls, as words."""
        norm = f", a partial {self.root:g}-norm" if self.root != 1.0 else ""
        return f"reduce={self.reduce!r}{norm}{', scope=spread' if self.spread else ''}"


@dataclass(frozen=True, slots=True)
class HistogramSeries:
    """A histogram series: name, context and how its values are binned."""

    name: str
    context: ContextItems
    binning: Binning

    def describe(self) -> str:
        """Return what must not change between two calls, as words."""
        return f"binning={self.binning!r}"


AnySeries = TypeVar("AnySeries", ScalarSeries, HistogramSeries)


class Registry(Generic[AnySeries]):
    """Gives every series a slot. Slots baked into compiled code stay right for ever; the others end with their run.

    Attributes:
        series: The series, in the order of their slots.
        capacity: How many slots there are.
    """

    def __init__(self, capacity: int, capacity_field: str):
        self.series: list[AnySeries] = []
        self.capacity = capacity
        self._capacity_field = capacity_field
        self._slots: dict[tuple[str, ContextItems], int] = {}
        self._lock = threading.Lock()  # several threads may log
        self._compiled = 0  # compiled code knows no slot from this one on

    @property
    def held(self) -> list[AnySeries]:
        """The series whose slots the next run finds taken: compiled code knows them, or one behind them."""
        return self.series[: self._compiled]

    def forget(self) -> None:
        """Free the slots that no compiled code knows, for a new run."""
        for series in self.series[self._compiled :]:
            del self._slots[series.name, series.context]
        del self.series[self._compiled :]

    def slot(self, series: AnySeries, compiled: bool = False) -> int:
        """Return the slot of a series, giving it one when it is new.

        Args:
            series: The series that is being logged.
            compiled: Whether compiled code will know the slot.

        Raises:
            TrackerValueError: If it was logged differently before, or the slots ran out.
        """
        key = (series.name, series.context)
        known = self._slots.get(key)
        if known is None:
            with self._lock:
                known = self._slots.get(key)
                known = self._add(key, series) if known is None else known
        if compiled:
            self._compiled = max(self._compiled, known + 1)
        if self.series[known] != series:
            raise TrackerValueError(
                f"{label(series.name, series.context)} was logged with {self.series[known].describe()} before and now "
                f"with {series.describe()}: a series has one; use another name or context for the other"
            )
        return known

    def knows(self, name: str, context: ContextItems) -> bool:
        """Return whether a series has a slot.

        Args:
            name: Its name.
            context: Its context.
        """
        return (name, context) in self._slots

    def _add(self, key: tuple[str, ContextItems], series: AnySeries) -> int:
        if len(self.series) >= self.capacity:
            raise TrackerValueError(
                f"no slot left for {label(series.name, series.context)}: all {self.capacity} are taken; raise "
                f"accumulator.{self._capacity_field}"
            )
        self.series.append(series)
        self._slots[key] = len(self.series) - 1
        return self._slots[key]


def label(name: str, context: ContextItems) -> str:
    """Return a series in words, for messages."""
    return f"series {name!r}" + (f" {dict(context)}" if context else "")
