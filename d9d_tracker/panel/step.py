"""How long a step takes: between calls of ``set_step`` on the host, and between events at the same places on a GPU."""

from collections.abc import Callable

from .timers import Mark, Stopwatch

_HOST, _DEVICE = ("time/step",), ("time/device",)


class Steps:
    """The times of steps.

    Args:
        clock: Takes the time.
        ended: Called when a step has ended, with its seconds on the host and whether code was compiled in it.
    """

    def __init__(self, clock: Stopwatch, ended: Callable[[float, bool], None]):
        self._clock, self._ended = clock, ended
        self._start: Mark | None = None
        self.logs = False

    def pass_to(self, is_next: bool) -> None:
        """Mark a call of ``set_step``.

        Args:
            is_next: Whether it begins another step, and has not gone on with one.
        """
        start = self._start
        if start is not None and not is_next:
            return
        clock = self._clock
        self._start = end = clock.mark("time/step")
        if start is None or end is None:
            return
        host, compiling = end[0] - start[0], end[1] != start[1]
        if self.logs:
            clock.meter.log(_HOST, host, compiling)
            if end[2] is not None:
                clock.meter.log(_DEVICE, clock.meter.elapsed(start[2], end[2], (start[2],)), compiling)
        else:
            clock.forget(start)
        self._ended(host, compiling)
