"""What the instruments of a run log by: slots of series, and numbers that arrive with the window."""

from collections.abc import Callable
from dataclasses import replace
from typing import SupportsFloat

from d9d_tracker.compiled.runs import Run
from d9d_tracker.context import Contexts
from d9d_tracker.lazy_torch import assume_constant_result
from d9d_tracker.log import warn_once
from d9d_tracker.series.series import ContextItems, Reduction, ScalarSeries
from d9d_tracker.windows.readings import packed

_COMPILING = (("compiling", "true"),)


class Gauge:
    """What a number is read for: one series, or two.

    Args:
        names: What they are called.

    Attributes:
        names: The same.
        known: Their slots, see ``packed``, by the context and by whether code was compiled.
        now: The context that held last, and the slots there.
    """

    __slots__ = ("known", "names", "now")

    def __init__(self, *names: str):
        self.names = names
        self.forget()

    def forget(self) -> None:
        """Know no slots, for a new run."""
        self.known: dict[tuple[ContextItems, bool], int] = {}
        self.now: tuple[ContextItems | None, int] = None, 0


class Meter:
    """What an instrument logs by: numbers of the current step, which arrive with its window.

    Args:
        run: Whose series they are.
        is_silent: Says that nothing is logged, by the name of what was, as the run is closed.

    Attributes:
        run: The same.
    """

    def __init__(self, run: Run, is_silent: Callable[[str], bool]):
        self.run, self._is_silent = run, is_silent
        self._buffers = run.buffers
        self._gauges: dict[tuple[str, ...], Gauge] = {}

    def start(self, has_ranks: bool, contexts: Contexts) -> None:
        """Begin a new run; if other ranks share it, each series becomes four, as of ``scope="spread"``."""
        self._has_ranks, self._contexts = has_ranks, contexts
        for gauge in list(self._gauges.values()):  # which blocks of the run before hold
            gauge.forget()

    def gauge(self, *names: str) -> Gauge:
        """Return what numbers of one series, or two, are logged by."""
        return self._gauges.get(names) or self._gauges.setdefault(names, Gauge(*names))

    def is_closed(self, name: str) -> bool:
        """Whether nothing is logged now, which is said once."""
        return not self.run.is_open and self._is_silent(name)

    def part(self, name: str, context: ContextItems, reduce: Reduction, ratios: tuple[tuple[str, int], ...]) -> int:
        """Return the slot of a series of all ranks that goes into ratios: see ``ScalarSeries.sums``."""
        return self._buffers.scalar_series.slot(ScalarSeries(name, context, reduce, sums=ratios))

    def log(self, gauge: Gauge, value: SupportsFloat, compiling: bool = False, reduce: Reduction = "sum") -> None:
        """Add a number to the current step of each series, where they combine; their context tells ``compiling``."""
        if not self.run.is_open:
            self._is_silent(gauge.names[0])
            return
        contexts = self._contexts
        context = contexts.of_block()
        if context is None:
            context = contexts.persistent
        of, slots = gauge.now
        if compiling or of is not context:
            slots = self.slots(gauge, compiling, reduce)
        buffers = self._buffers
        buffers.readings.append((buffers.now[0], slots, value))

    def slots(self, gauge: Gauge, compiling: bool = False, reduce: Reduction = "sum") -> int:
        """Return the slots of a gauge in the context that holds here; an error if another series has its name."""
        context = self._contexts.get()
        slots = gauge.known.get((context, compiling)) or self._claim(gauge, context, compiling, reduce)
        if not compiling and (context, compiling) in gauge.known:
            gauge.now = context, slots
        return slots

    def _claim(self, gauge: Gauge, context: ContextItems, compiling: bool, reduce: Reduction) -> int:
        items = tuple(sorted({**dict(context), **dict(_COMPILING if compiling else ())}.items()))
        registry = self._buffers.scalar_series
        found: list[int] = []
        for name in gauge.names:
            series = ScalarSeries(name, items, reduce, spread=self._has_ranks)
            other = replace(series, spread=not series.spread)
            if other in registry.series:  # of a state that another number of ranks has saved
                registry.series[registry.series.index(other)] = series
            found.append(registry.slot(series))
        slots = packed(*found)
        if -1 not in found:  # else each value is counted as it is dropped
            gauge.known[context, compiling] = slots
        return slots


@assume_constant_result
def say_unmeasured(where: str) -> None:
    """Say, once a process, that a block takes no time."""
    words = "a block %s cannot be timed, and nothing is logged of it: time the call of that code"
    warn_once(("timed", where), words, where)
