"""Numbers of eager code on a CPU: merged into the bank where it lies, without the dispatcher of torch."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from d9d_tracker.series.series import VALUE_LANE, ContextItems, Reduction
from d9d_tracker_kernels.lanes import LANES
from d9d_tracker_kernels.scalars import flat_numbers, merge_number

from .typed_tensors import local_types

_TENSORS = (torch.Tensor, torch.nn.Parameter)
# Not np.integer, of which a np.timedelta64 is one.
_INTEGERS = np.unsignedinteger, np.int64, np.int32, np.int16, np.int8
_NUMBERS: tuple[type, ...] = (float, int, np.floating, *_INTEGERS, np.bool_)


class HostScalars:
    """A scalar bank in the memory of the host.

    Args:
        current: The state of the step, float64 of shape ``[LANES, columns]``, on the CPU, the lanes of a slot together.
        window: Those of the finished steps, float64 of shape ``[rows, LANES, columns]``, likewise.
        initial: The state of a step in which nothing was logged, of the shape of ``current``.
        step: The current step, int64 of shape ``[1]``.

    Attributes:
        current: The same, for NumPy.
        window: Likewise.
        known: Slots of series of this run that were logged in the most ordinary way, which are looked up quickest.
    """

    def __init__(self, current: torch.Tensor, window: torch.Tensor, initial: torch.Tensor, step: torch.Tensor):
        self.current, self.window = current.numpy(), window.numpy()
        of_step: Any = step.numpy()  # a buffer, of which its stubs know nothing
        self._step = memoryview(of_step)
        self._numbers, self._initial = flat_numbers(current), flat_numbers(initial)
        self._numbers_of_rows = [flat_numbers(row) for row in window]
        self._strides = current.stride()
        self._use(0)
        self.known: dict[tuple[str, ContextItems, Reduction], int] = {}

    def merge(self, slots: Iterable[int], values: Sequence[float], reduce: Reduction, weight: float) -> None:
        """Merge one value into each of several slots (-1 is none), of series with one reduction."""
        lane = VALUE_LANE[reduce]
        for slot, value in zip(slots, values):  # noqa: B905 - they are as many, and to ask costs more than to merge
            if slot >= 0:
                merge_number(self._numbers, self._strides, slot, lane, value, weight)

    def file(self, row: int, slots: int) -> None:
        """Copy the state of the step to a row of the window; see ``ScalarBank.file``."""
        if slots != self._slots:
            self._use(slots)
        self._rows[row][:] = self._used  # of memoryviews: NumPy goes through more code, which is fetched from far

    def begin(self, slots: int, step: int) -> None:
        """Start a step; see ``ScalarBank.begin``."""
        if slots != self._slots:
            self._use(slots)
        self._used[:] = self._blank
        self._step[0] = step

    def _use(self, slots: int) -> None:
        """Keep views of what so many slots have, because slots are new for a few steps, and every step needs them."""
        self._slots = slots
        numbers = slice(slots * LANES)
        self._used, self._blank = self._numbers[numbers], self._initial[numbers]
        self._rows = [row[numbers] for row in self._numbers_of_rows]


def as_number(value: Any) -> float | None:
    """Return what is a number on the host, in plain code; None for all that takes a closer look."""
    if type(value) in _TENSORS:
        if not value.is_cpu or local_types(value):
            return None
        try:
            value = value.item()
        except RuntimeError:
            return None
    if isinstance(value, _NUMBERS):
        try:
            return float(value)
        except OverflowError:
            return None
    return None
