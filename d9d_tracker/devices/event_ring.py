"""Events of a GPU that tell the time: made beforehand, used again when they have been read."""

import threading
from collections import deque
from typing import Any

import torch

from d9d_tracker_kernels.device import gpu

from .event_wait import relaxed, wait_for

_MADE_AT_ONCE = 64


class EventRing:
    """Events that mark how far the device has come.

    Args:
        device: The GPU.
        events: How many to make now. Should they not do, more are made when they are needed.
    """

    def __init__(self, device: torch.device, events: int):
        self._device = device
        self._free: deque[Any] = deque()  # whose two ends are safe for several threads
        self._make(events)

    def record(self) -> Any:
        """Record an event on the current stream, and return it. Allocates only if none is free."""
        try:
            event = self._free.popleft()
        except IndexError:
            self._make(_MADE_AT_ONCE)
            event = self._free.popleft()
        event.record(gpu.current_stream(self._device))
        return event

    def give_back(self, *events: Any) -> None:
        """Take events back that nobody will read."""
        self._free.extend(events)

    def _make(self, count: int) -> None:
        with relaxed(), gpu.device(self._device):  # or somebody's capture would break
            made = [gpu.Event(enable_timing=True) for _ in range(count)]
            for event in made:
                event.record(gpu.current_stream(self._device))  # before, it is not there
        self._free.extend(made)


class Elapsed:
    """The seconds of the device between two events. ``float`` waits for the second one; not for the training thread.

    Args:
        ring: Where the events are from.
        start: The first.
        end: The second.
        last_use: Those of both that nothing else will read: they go back to the ring.
    """

    def __init__(self, ring: EventRing, start: Any, end: Any, last_use: tuple[Any, ...]):
        self._ring, self._start, self._end, self._last_use = ring, start, end, last_use
        self._lock = threading.Lock()  # a state may be taken while the window arrives
        self._seconds: float | None = None

    def is_there(self) -> bool:
        """Tell whether it is known, without a wait."""
        return self._seconds is not None or self._end.query()

    def __float__(self) -> float:
        """Return the seconds."""
        with self._lock:
            seconds = self._seconds
            if seconds is None:
                wait_for(self._end)
                with relaxed():
                    self._seconds = seconds = float(self._start.elapsed_time(self._end)) / 1000
                self._ring.give_back(*self._last_use)
            return seconds
