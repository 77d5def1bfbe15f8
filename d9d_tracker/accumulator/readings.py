"""What instruments read: numbers, or what is known when the window arrives. No kernel runs for them."""

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace

from d9d_tracker_kernels import COUNT, MAX, SUM, WEIGHT

from .host_window import HostWindow
from .reductions import VALUE_LANE

logger = logging.getLogger("d9d_tracker")

Value = float | Callable[[], float | None]
Reading = tuple[int, int, Value]  # slot, step, value

_said: set[str] = set()


def with_readings(window: HostWindow, readings: Sequence[Reading]) -> HostWindow:
    """Return a window with what was read merged in.

    Args:
        window: The window as it was packed; it is not changed.
        readings: Of series that are a sum, a mean, the last or the largest value.
    """
    known = [(slot, step, number) for slot, step, value in readings if (number := _number(value)) is not None]
    if not known:
        return window
    lanes = window.lanes.copy()
    for slot, step, number in known:
        row = min(bisect_left(window.steps, step), len(window.steps) - 1)  # a window of one row is at its last step
        lane = VALUE_LANE[window.scalars[slot].reduce]
        if lane == SUM:
            number += lanes[row, SUM, slot]
        elif lane == MAX:
            number = max(number, lanes[row, MAX, slot])
        lanes[row, lane, slot] = number
        lanes[row, WEIGHT : COUNT + 1, slot] += 1.0
    return replace(window, lanes=lanes)


def _number(value: Value) -> float | None:
    try:
        return value() if callable(value) else value
    except Exception as error:  # the window is worth more than an instrument
        if (words := repr(error)) not in _said:
            _said.add(words)
            logger.warning("an instrument cannot be read: %s", words)
        return None
