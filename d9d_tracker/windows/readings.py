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
Reading = tuple[int, tuple[int, ...], Value]  # a step, slots (-1 is none), and what was read, for each of them

_said: set[str] = set()


def with_readings(window: HostWindow, readings: Sequence[Reading]) -> HostWindow:
    """Return a window with what was read merged in: sums, means, last or largest values."""
    steps: list[int] = []
    slots: list[int] = []
    numbers: list[float] = []
    for step, in_slots, value in readings:
        number = value if isinstance(value, float) else _number(value)
        if number is None:
            continue
        for slot in in_slots:
            if slot >= 0:
                steps.append(step)
                slots.append(slot)
                numbers.append(number)
    if not numbers:
        return window
    columns, lanes = len(window.scalars), window.lanes.copy()
    rows = np.searchsorted(window.steps, np.array(steps, dtype=np.int64)).clip(max=len(window.steps) - 1)
    cells = rows * (LANES * columns) + np.array(slots)  # where there is one row, it is at the window's last step
    values, flat = np.array(numbers), lanes.reshape(-1)
    lanes_of = np.array([VALUE_LANE[series.reduce] for series in window.scalars])[slots]
    for lane, merge in ((SUM, np.add), (MAX, np.maximum)):
        chosen = lanes_of == lane
        merge.at(flat, cells[chosen] + lane * columns, values[chosen])
    is_last = lanes_of == LAST
    flat[cells[is_last] + LAST * columns] = values[is_last]
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
