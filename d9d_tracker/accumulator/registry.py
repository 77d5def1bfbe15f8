"""Series and their slots: which row of the device buffers belongs to which name and context."""

import itertools
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from d9d_tracker.config import Binning
from d9d_tracker.errors import TrackerTypeError, TrackerValueError

Reduction = Literal["mean", "sum", "min", "max", "last"]
REDUCTIONS: tuple[Reduction, ...] = ("mean", "sum", "min", "max", "last")

ContextItems = tuple[tuple[str, str], ...]
_token = itertools.count()


@dataclass(frozen=True, slots=True)
class ScalarSeries:
    """A scalar series: name, context and how its values combine."""

    name: str
    context: ContextItems
    reduce: Reduction

    def describe(self) -> str:
        """Return what must not change between two calls, as words."""
        return f"reduce={self.reduce!r}"


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
    """Gives every series a slot and never takes it back, so that slots baked into compiled code stay right.

    Attributes:
        token: Unique to this registry; compiled code is guarded on it.
        series: The series, in the order of their slots.
        capacity: How many slots there are.
    """

    def __init__(self, capacity: int, capacity_field: str):
        self.token = f"registry {next(_token)}"
        self.series: list[AnySeries] = []
        self.capacity = capacity
        self._capacity_field = capacity_field
        self._slots: dict[tuple[str, ContextItems], int] = {}

    def slot(self, series: AnySeries) -> int:
        """Return the slot of a series, giving it one when it is new.

        Args:
            series: The series that is being logged.

        Raises:
            TrackerTypeError: If its name or context is not text.
            TrackerValueError: If its name is empty, it was logged differently before, or the slots ran out.
        """
        key = (series.name, series.context)
        known = self._slots.get(key)
        if known is None:
            return self._add(key, series)
        if self.series[known] != series:
            raise TrackerValueError(
                f"{label(series.name, series.context)} was logged with {self.series[known].describe()} before and now "
                f"with {series.describe()}: a series has one; use another name or context for the other"
            )
        return known

    def _add(self, key: tuple[str, ContextItems], series: AnySeries) -> int:
        _check_name(series.name)
        check_context(series.name, dict(series.context))
        if len(self.series) >= self.capacity:
            raise TrackerValueError(
                f"no slot left for {label(series.name, series.context)}: all {self.capacity} are taken; raise "
                f"accumulator.{self._capacity_field}"
            )
        slot = self._slots[key] = len(self.series)
        self.series.append(series)
        return slot


def label(name: str, context: ContextItems) -> str:
    """Return a series in words, for messages."""
    return f"series {name!r}" + (f" {dict(context)}" if context else "")


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TrackerTypeError(f"series {name!r}: a name is a str, not {type(name).__name__}")
    if not name:
        raise TrackerValueError("series '': the name is empty; give the series a name")


def check_context(name: str, context: object) -> None:
    """Refuse a context that is not ``dict[str, str]``.

    Args:
        name: What is being logged, for the message.
        context: What was given as context.

    Raises:
        TrackerTypeError: If it is anything else.
    """
    if not isinstance(context, dict):
        raise TrackerTypeError(f"{name!r}: a context is a dict[str, str], not {type(context).__name__}")
    for key, value in context.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TrackerTypeError(
                f"{name!r}: a context is a dict[str, str], but {key!r} is {value!r}; convert both to str"
            )
