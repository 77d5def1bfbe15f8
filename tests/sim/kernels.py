"""What the product's kernels do, from the arguments of their launches: where the compiled ones would be too slow.

They take what a launch is given, tables and addresses included, so that the host code before a launch is the product's.
"""

from typing import Any

import numpy as np
import torch

from d9d_tracker_kernels import histogram, ready_counts, reference, scalar_kernels
from d9d_tracker_kernels import launch as launching
from d9d_tracker_kernels.lanes import INITIAL
from d9d_tracker_kernels.scalars import flat_numbers, merge_number

from .machine import machine
from .tensors import hidden

_DTYPES = {str(element): dtype for dtype, element in launching.ELEMENT_TYPES.items()}
_CODES = {code: dtype for dtype, code in scalar_kernels.CODES.items() if dtype != torch.bool}


class Kernel:
    """Stands for a Triton kernel.

    Args:
        name: Its name.
        function: Does what it does, on memory of the host.
    """

    def __init__(self, name: str, function: Any):
        self.name, self._function = name, function

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments, **constants: self._launch(grid, arguments, constants)

    def _launch(self, grid: tuple[int, ...], arguments: tuple, constants: dict[str, Any]) -> None:
        index = machine().device
        for tensor in arguments:
            if isinstance(tensor, torch.Tensor) and tensor.device != torch.device("cuda", index):
                raise RuntimeError(f"{self.name} is launched on cuda:{index} with a tensor on {tensor.device}")
        variant = (self.name, index, *sorted((key, str(value)) for key, value in constants.items()), _widths(arguments))
        if variant not in machine().loaded:  # compiled and loaded when it is first launched
            machine().refuse_in_captures(f"a load of {self.name}")
            machine().loaded.add(variant)
        machine().launches.append(variant)
        given = [hidden(argument) for argument in arguments]
        machine().enqueue(machine().current(), lambda: self._function(index, grid, *given, **constants))


def _widths(arguments: tuple) -> tuple[int, ...]:
    return tuple(len(argument) for argument in arguments if isinstance(argument, tuple))


def _binning(kind: int, bins: int, low: float, closing: float, dtype: torch.dtype) -> tuple[int, int, float, float]:
    if dtype in launching._FLOAT64_DTYPES:
        return kind, bins, low, float(np.nextafter(closing, -np.inf))
    return kind, bins, low, float(np.nextafter(np.float32(closing), np.float32(-np.inf)))


def _in_a_row(values: torch.Tensor, numel: int) -> torch.Tensor:
    return values.as_strided((numel,), (1,))  # whatever its strides: a kernel is given an address


def _read(address: int, numel: int, dtype: torch.dtype, device: int) -> torch.Tensor:
    if numel == 0:
        return torch.empty(0, dtype=dtype)
    data = machine().memory.bytes_at(address, numel * dtype.itemsize, device)
    return data.clone().view(dtype)


def count_one(
    device, grid, values, numel, tiles, counts, moments, partials, places, step, place, every, *numbers, **constants
):
    assert grid[0] <= partials.shape[1] - 1
    bins, low, closing, *_ = numbers
    now, row = int(step), int(places[place])
    if now % every == 0 and row >= 0:
        binning = _binning(constants["KIND"], bins, low, closing, values.dtype)
        reference.histogram_(_in_a_row(values, numel), counts, moments, now, row, *binning)


def count_many(device, grid, table, tensors, counts, moments, partials, places, step, every, *numbers, **constants):
    assert grid == (len(table),)
    bins, low, closing, *_ = numbers
    now, dtype = int(step), _DTYPES[str(constants["ELEMENT"])]
    seen: dict[int, int] = {}
    for tensor, numel, first, stop, segment, segments in table.tolist():
        seen[tensor] = seen.get(tensor, 0) + 1
        assert first < stop
        assert segment < segments <= partials.shape[1] - 1
        if segment:
            continue
        address, place = tensors[tensor].tolist()
        row = int(places[place])
        if now % every == 0 and row >= 0:
            binning = _binning(constants["KIND"], bins, low, closing, dtype)
            reference.histogram_(_read(address, numel, dtype, device), counts, moments, now, row, *binning)


def add_counts(device, grid, values, numel, counts, moments, places, step, place, every, **_):
    now, row = int(step), int(places[place])
    if now % every == 0 and row >= 0:
        reference.add_counts_(_in_a_row(values, numel), counts, moments, now, row)


def merge_values(device, grid, current, columns, table, targets, lows, highs, **constants):
    def number(target: int, low: int, high: int) -> float:
        target, low, high = ((argument - scalar_kernels._OFFSET) >> 1 for argument in (target, low, high))
        bits = low | high << 32
        if target & 15 == 0:
            return float(np.array(bits, np.uint64).view(np.float64))
        return float(_read(bits, 1, _CODES[target & 15], device).double())

    assert columns == current.shape[1]
    weight = number(targets[-1], lows[-1], highs[-1])
    for target, low, high in zip(targets[:-1], lows[:-1], highs[:-1], strict=True):
        what = (target - scalar_kernels._OFFSET) >> 1
        if what & 15 == scalar_kernels._NOTHING:
            continue
        slot = int(table[what >> 4])
        if slot >= 0:
            value = number(target, low, high)
            merge_number(flat_numbers(current), current.stride(), slot, constants["LANE"], value, weight)


def empty_slots(device, grid, current, columns, slots, step, now, **_):
    current[:, :slots] = torch.tensor(INITIAL, dtype=torch.float64)[:, None]
    step.fill_(now)


KERNELS = (
    (histogram, "count_one", count_one),
    (histogram, "count_many", count_many),
    (ready_counts, "add_counts", add_counts),
    (scalar_kernels, "merge_values", merge_values),
    (scalar_kernels, "empty_slots", empty_slots),
)
