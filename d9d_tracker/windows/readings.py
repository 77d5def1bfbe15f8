"""What instruments read: numbers, or what is known when the window arrives. No kernel runs for them."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import SupportsFloat

import numpy as np

from d9d_tracker.log import warn_once
from d9d_tracker.series.series import VALUE_LANE
from d9d_tracker_kernels.lanes import COUNT, LANES, LAST, MAX, SUM, WEIGHT

from .host_window import HostWindow

Reading = tuple[int, int, SupportsFloat]  # a step, the slots of one or two series (see ``packed``), what was read

_SLOTS = 2**24


class Later:
    """A number, or None, that is asked for when the window arrives."""

    def __init__(self, ask: Callable[[], float | None]):
        self.ask = ask

    def __float__(self) -> float:
        """Return it; raises if there is none."""
        return float(self.ask())  # pyright: ignore[reportArgumentType] which raises


def packed(slot: int, other: int = -1) -> int:
    """Return two slots, -1 where there is none, as one number."""
    return slot + 1 + _SLOTS * (other + 1)


def with_readings(window: HostWindow, readings: Sequence[Reading]) -> HostWindow:
    """Return a window with what was read merged in: sums, means, last or largest values."""
    if not readings or not window.scalars:
        return window
    try:
        steps, pairs, numbers = _columns(readings)
    except Exception:
        steps, pairs, numbers = _columns([one for one in readings if _can_be_read(one[2])])
    rows = np.searchsorted(window.steps, steps).clip(max=len(window.steps) - 1)
    others, slots = np.divmod(pairs, _SLOTS)
    second = np.flatnonzero(others)
    slots = np.concatenate((slots, others[second])) - 1
    rows, numbers = np.concatenate((rows, rows[second])), np.concatenate((numbers, numbers[second]))
    if (is_lost := slots < 0).any():  # there was no slot left
        rows, slots, numbers = rows[~is_lost], slots[~is_lost], numbers[~is_lost]
    columns, lanes = len(window.scalars), window.lanes.copy()
    cells = rows * (LANES * columns) + slots  # where there is one row, it is at the window's last step
    lanes_of, flat = np.array([VALUE_LANE[series.reduce] for series in window.scalars])[slots], lanes.reshape(-1)
    for lane, merge in ((SUM, np.add), (MAX, np.maximum)):
        chosen = np.flatnonzero(lanes_of == lane)
        merge.at(flat, cells[chosen] + lane * columns, numbers[chosen])
    is_last = np.flatnonzero(lanes_of == LAST)
    flat[cells[is_last] + LAST * columns] = numbers[is_last]
    counts = np.bincount(rows * columns + slots, minlength=len(window.steps) * columns)
    lanes[:, [WEIGHT, COUNT]] += counts.reshape(-1, 1, columns)
    return replace(window, lanes=lanes)


def _columns(readings: Sequence[Reading]) -> list[np.ndarray]:
    """Return steps, slots and numbers, in C: the training thread waits for a loop of Python."""
    columns = [struct.pack(f"{len(readings)}{kind}", *map(itemgetter(at), readings)) for at, kind in enumerate("qqd")]
    return [np.frombuffer(column, dtype) for column, dtype in zip(columns, "qqd", strict=True)]


def _can_be_read(value: SupportsFloat) -> bool:
    try:
        if isinstance(value, Later) and value.ask() is None:
            return False
        float(value)
    except Exception as error:  # the window is worth more than an instrument
        warn_once(("read", repr(error)), "an instrument cannot be read: %r", error)
        return False
    return True
