"""What instruments read: numbers, or what is known when the window arrives. No kernel runs for them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from d9d_tracker.series.reductions import VALUE_LANE
from d9d_tracker_kernels import COUNT, LANES, LAST, MAX, SUM, WEIGHT

from .host_window import HostWindow

logger = logging.getLogger("d9d_tracker")

Value = float | Callable[[], float | None]
Reading = tuple[int, tuple[int, ...], tuple[Value, ...]]  # a step, slots, and as many values; a slot of -1 is none

_said: set[str] = set()


def with_readings(window: HostWindow, readings: Sequence[Reading]) -> HostWindow:
    """Return a window with what was read merged in: sums, means, last or largest values."""
    known = [
        (step, slot, number)
        for step, slots, values in readings
        for slot, value in zip(slots, values, strict=True)
        if slot >= 0 and (number := _number(value)) is not None
    ]
    if not known:
        return window
    steps, slots, numbers = (np.array(column) for column in zip(*known, strict=True))
    rows = np.searchsorted(window.steps, steps).clip(max=len(window.steps) - 1)  # one row is at the window's last step
    lanes_of = np.array([VALUE_LANE[series.reduce] for series in window.scalars])[slots]
    lanes = window.lanes.copy()
    flat, columns = lanes.reshape(-1), len(window.scalars)
    cells = rows * (LANES * columns) + slots
    for lane, merge in ((SUM, np.add), (MAX, np.maximum)):
        chosen = lanes_of == lane
        merge.at(flat, cells[chosen] + lane * columns, numbers[chosen])
    is_last = lanes_of == LAST
    flat[cells[is_last] + LAST * columns] = numbers[is_last]
    for lane in (WEIGHT, COUNT):
        np.add.at(flat, cells + lane * columns, 1.0)
    return replace(window, lanes=lanes)


def _number(value: Value) -> float | None:
    try:
        return value() if callable(value) else value
    except Exception as error:  # the window is worth more than an instrument
        if (words := repr(error)) not in _said:
            _said.add(words)
            logger.warning("an instrument cannot be read: %s", words)
        return None
