"""What the instruments of a run log by: slots of series, and numbers that arrive with the window."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from d9d_tracker.compiled.runs import Run
from d9d_tracker.devices.event_ring import Elapsed, EventRing
from d9d_tracker.panel.timers import say_unmeasured
from d9d_tracker.series.reductions import Reduction
from d9d_tracker.series.registry import ContextItems, ScalarSeries
from d9d_tracker.windows.readings import Value
from d9d_tracker_kernels.device import gpu

_WINDOWS = 3  # one is open, one on its way, one being read
_BLOCKS = 4  # that a step times, if it is not known better
_COMPILING = (("compiling", "true"),)


class Meter:
    """See ``d9d_tracker.panel.timers.Meter``; for one run.

    Args:
        run: Whose series they are.
        has_ranks: Whether other ranks share the run: then each of the series becomes four, as of ``scope="spread"``.
        context: Returns the persistent context.
        is_silent: Says that nothing is logged, by the name of what was, as the run is closed.
    """

    def __init__(
        self, run: Run, has_ranks: bool, context: Callable[[], ContextItems], is_silent: Callable[[str], bool]
    ):
        self.run, self._has_ranks, self._context, self._is_silent = run, has_ranks, context, is_silent
        self._buffers = buffers = run.buffers
        self._slots: dict[tuple[tuple[str, ...], bool, ContextItems], tuple[int, ...]] = {}
        self._ring = EventRing(buffers.device, _WINDOWS * _BLOCKS * buffers.sync_every) if buffers.is_gpu else None

    @property
    def is_gpu(self) -> bool:
        """Whether there is a device that works beside the host."""
        return self._ring is not None

    def refuses(self, name: str) -> bool:
        """Whether nothing can be measured here and now, which is said once."""
        if not self.run.is_open:
            return self._is_silent(name)
        if self._ring is None or not gpu.is_current_stream_capturing():
            return False
        say_unmeasured("in a CUDA graph that is captured")
        return True

    def record(self) -> Any:
        """Record an event on the current stream."""
        assert self._ring is not None
        return self._ring.record()

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

    def log(
        self, names: tuple[str, ...], values: tuple[Value, ...], compiling: bool = False, reduce: Reduction = "sum"
    ) -> None:
        """Add numbers to the current step, where those of a series combine; ``compiling`` is told by their context."""
        key = (names, compiling, self._context())
        buffers = self._buffers
        buffers.readings.append((buffers.now[0], self._slots.get(key) or self._claim(*key, reduce), values))

    def _claim(
        self, names: tuple[str, ...], compiling: bool, context: ContextItems, reduce: Reduction
    ) -> tuple[int, ...]:
        items = tuple(sorted({**dict(context), **dict(_COMPILING if compiling else ())}.items()))
        registry = self._buffers.scalar_series
        found: list[int] = []
        for name in names:
            series = ScalarSeries(name, items, reduce, spread=self._has_ranks)
            other = replace(series, spread=not series.spread)
            if other in registry.series:  # of a state that another number of ranks has saved
                registry.series[registry.series.index(other)] = series
            found.append(registry.slot(series))
        slots = tuple(found)
        if -1 not in slots:  # else each value is counted as it is dropped
            self._slots[names, compiling, context] = slots
        return slots
