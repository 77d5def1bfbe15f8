"""What the instruments of a run log by: slots of series, and numbers that arrive with the window."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from d9d_tracker.panel.timers import say_unmeasured
from d9d_tracker_kernels.device import gpu

from .buffers import Buffers
from .event_ring import Elapsed, EventRing
from .readings import Value
from .reductions import Reduction
from .registry import ContextItems, ScalarSeries

_WINDOWS = 3  # one is open, one on its way, one being read
_BLOCKS = 4  # that a step times, if it is not known better
_COMPILING = (("compiling", "true"),)


class Meter:
    """See ``d9d_tracker.panel.timers.Meter``; for one run.

    Args:
        buffers: The device state.
        has_ranks: Whether other ranks share the run: then each of the series becomes four, as of ``scope="spread"``.
        context: Returns the persistent context.
        is_silent: Tells, of a name, whether nothing is to be logged.
    """

    def __init__(
        self,
        buffers: Buffers,
        has_ranks: bool,
        context: Callable[[], ContextItems],
        is_silent: Callable[[str], bool],
    ):
        self._buffers, self._has_ranks, self._context, self._is_silent = buffers, has_ranks, context, is_silent
        self._slots: dict[tuple[str, bool, ContextItems], int] = {}
        self._ring = EventRing(buffers.device, _WINDOWS * _BLOCKS * buffers.sync_every) if buffers.is_gpu else None

    def refuses(self, name: str) -> bool:
        """Whether nothing can be measured here and now, which is said once."""
        if self._is_silent(name):
            return True
        if self._ring is None or not gpu.is_current_stream_capturing():
            return False
        say_unmeasured("in a CUDA graph that is captured")
        return True

    def record(self) -> Any:
        """Record an event on the current stream; None on a CPU."""
        return None if self._ring is None else self._ring.record()

    def elapsed(self, start: Any, end: Any, last_use: tuple[Any, ...]) -> Elapsed:
        """Return the seconds of the device between two events, to be known later."""
        assert self._ring is not None  # or there were no events
        return Elapsed(self._ring, start, end, last_use)

    def give_back(self, *events: Any) -> None:
        """Take events back that nobody will read."""
        assert self._ring is not None
        self._ring.give_back(*events)

    def part(self, name: str, context: ContextItems, reduce: Reduction, ratios: tuple[tuple[str, int], ...]) -> int:
        """Return the slot of a series of all ranks that goes into ratios: see ``ScalarSeries.sums``."""
        return self._buffers.scalar_series.slot(ScalarSeries(name, context, reduce, sums=ratios))

    def log(self, values: Sequence[tuple[str, Value]], compiling: bool = False, reduce: Reduction = "sum") -> None:
        """Add numbers to the current step.

        Args:
            values: Names and numbers.
            compiling: Whether code was compiled meanwhile, which their context then says.
            reduce: How several numbers of a step combine: sum, mean, last or max.
        """
        context = self._context()
        found: list[tuple[int, Value]] = []
        for name, value in values:
            slot = self._slots.get((name, compiling, context))
            found.append((self._slot(name, compiling, context, reduce) if slot is None else slot, value))
        self._buffers.add_readings(found)

    def _slot(self, name: str, compiling: bool, context: ContextItems, reduce: Reduction) -> int:
        items = tuple(sorted({**dict(context), **dict(_COMPILING if compiling else ())}.items()))
        registry = self._buffers.scalar_series
        series = ScalarSeries(name, items, reduce, spread=self._has_ranks)
        other = replace(series, spread=not series.spread)
        if other in registry.series:  # of a state that another number of ranks has saved
            registry.series[registry.series.index(other)] = series
        slot = registry.slot(series)
        if slot >= 0:
            self._slots[name, compiling, context] = slot
        return slot
