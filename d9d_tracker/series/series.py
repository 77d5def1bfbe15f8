"""What a series is: its name and context, and how its values combine or are binned."""

from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar, get_args

from d9d_tracker.config import Binning
from d9d_tracker.context import ContextItems
from d9d_tracker_kernels.lanes import LAST, MAX, NEGATED_MIN, SUM

Reduction = Literal["mean", "sum", "min", "max", "last"]
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)
VALUE_LANE: dict[Reduction, int] = {"mean": SUM, "sum": SUM, "min": NEGATED_MIN, "max": MAX, "last": LAST}


@dataclass(frozen=True, slots=True)
class ScalarSeries:
    """A scalar series: name, context and how its values combine.

    ``root`` is the p of partial p-norms: the p-th root of what the lanes give is the value. ``spread`` is that of
    ``scope="spread"``. ``sums`` are the series that it goes into, in whose place it is not written itself (see
    window_points.py); with -1, it is what a ratio is divided by. They may change.
    """

    name: str
    context: ContextItems
    reduce: Reduction
    root: float = 1.0
    spread: bool = False
    sums: tuple[tuple[str, int], ...] = field(default=(), compare=False)

    def describe(self) -> str:
        """Return what must not change between two calls, as words."""
        norm = f", a partial {self.root:g}-norm" if self.root != 1.0 else ""
        norm += ", as part of a sum" if self.sums else ""
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


class Named(Protocol):
    """A handle, whose name compiled code must not read unless it is refused: it would be a guard."""

    name: str


def label(name: str | Named, context: ContextItems) -> str:
    """Return a series in words, for messages."""
    text = name if isinstance(name, str) else name.name
    return f"series {text!r}" + (f" {dict(context)}" if context else "")
