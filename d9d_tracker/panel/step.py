"""How long a step takes: between calls of ``set_step`` on the host, and between events at the same places on a GPU."""

from collections.abc import Callable

from d9d_tracker.devices.event_ring import Elapsed

from .rates import Rates
from .timers import Mark, Stopwatch


class Steps:
    """The times of steps.

    Args:
        clock: Takes the time.
        rates: Divide by it.
        window_ends: Called at the end of a window's last step, and of the first one that is timed.

    Attributes:
        gauges: Of the host's time, and of the device's if it has one.
        logs: Whether the times are series themselves.
        is_first: Whether no step has been timed.
    """

    def __init__(self, clock: Stopwatch, rates: Rates, window_ends: Callable[[], None]):
        self._clock, self._rates, self._window_ends = clock, rates, window_ends
        self.gauges = [clock.meter.gauge(name) for name in ("time/step", "time/device")[: 1 + clock.is_gpu]]
        self._start: Mark | None = None
        self.logs, self.is_first = False, True

    def pass_to(self, is_next: bool) -> None:
        """Mark a call of ``set_step``, which begins another step or goes on with one."""
        start = self._start
        if start is not None and not is_next:
            return
        clock = self._clock
        self._start = end = clock.mark("time/step")
        if start is None or end is None:
            return
        host, compiling, meter = end[0] - start[0], end[1] != start[1], clock.meter
        if self.logs:
            meter.log(self.gauges[0], host, compiling)
            if clock.ring is not None:
                meter.log(self.gauges[1], Elapsed(clock.ring, start[2], end[2], (start[2],)), compiling)
        else:
            clock.forget(start)
        buffers = meter.run.buffers
        now = buffers.now
        if not compiling:
            for slot, factor in self._rates.of_time:
                buffers.readings.append((now[0], slot, host * factor))
        if self.is_first or now[6] + 1 == buffers.sync_every:
            self.is_first = False
            self._window_ends()
