"""How long a step takes: between calls of ``set_step`` on the host, and between events at the same places on a GPU."""

from collections.abc import Callable

from .timers import Mark, Stopwatch


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
        self._start = end = self._clock.mark("time/step")
        if start is None or end is None:
            return
        (began, start_event, known), (ended, end_event, now_known) = start, end
        host, compiling = ended - began, now_known != known
        if self.logs:
            if end_event is None:
                self._clock.meter.log(("time/step",), (host,), compiling)
            else:
                device = self._clock.meter.elapsed(start_event, end_event, (start_event,))
                self._clock.meter.log(("time/step", "time/device"), (host, device), compiling)
        elif start_event is not None:
            self._clock.meter.give_back(start_event)
        self._ended(host, compiling)
