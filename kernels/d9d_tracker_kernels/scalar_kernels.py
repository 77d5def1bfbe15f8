"""Scalars on a GPU in one launch: values merge into slots; a step begins. The reference is in scalars.py.

Addresses and numbers travel as arguments of the launch: there is no table to be filled first, and none to be kept.
"""

# Kernels are in Triton's language, which only looks like Python: pyright cannot type it.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportInvalidTypeForm=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

import struct
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from d9d_tracker_kernels import lanes
from d9d_tracker_kernels.device import gpu

SUM = tl.constexpr(lanes.SUM)
WEIGHT = tl.constexpr(lanes.WEIGHT)
COUNT = tl.constexpr(lanes.COUNT)
NEGATED_MIN = tl.constexpr(lanes.NEGATED_MIN)
LAST = tl.constexpr(lanes.LAST)
MAX = tl.constexpr(lanes.MAX)
LANES = tl.constexpr(lanes.LANES)

# What an argument stands for: a number, or the address of one that is to be read as a dtype.
_NUMBER, _NOTHING = 0, 15
CODES = {
    torch.float64: 1,
    torch.float32: 2,
    torch.float16: 3,
    torch.bfloat16: 4,
    torch.int64: 5,
    torch.int32: 6,
    torch.int16: 7,
    torch.int8: 8,
    torch.uint8: 9,
    torch.bool: 9,
}
# Variants are compiled for so many values; what is missing is nothing.
SIZES = (1, 8, 64)

# Triton compiles another variant for an int that is 1, divisible by 16, or needs 32 bits instead of 64: these are none.
_OFFSET = 2**40
OFFSET = tl.constexpr(_OFFSET)


def merge(
    current: torch.Tensor,
    places: torch.Tensor,
    at: Sequence[int],
    tensors: Sequence[torch.Tensor],
    numbers: Sequence[float],
    lane: int,
    weight: torch.Tensor | float,
) -> None:
    """Merges values into slots, up to 64 in a launch. Arguments as for the operator, see scalars.py."""
    readable = [_readable(tensor) for tensor in tensors]
    values = [*readable, *numbers]
    factor = _readable(weight) if isinstance(weight, torch.Tensor) else weight
    with gpu.device_of(current):
        for first in range(0, len(values), SIZES[-1]):
            part = slice(first, first + SIZES[-1])
            arguments = pack(at[part], values[part], factor)
            merge_values[(1,)](
                current, current.shape[1], places, *arguments, LANE=lane, num_warps=1, enable_fp_fusion=False
            )


def begin_step(current: torch.Tensor, slots: int, step: torch.Tensor, now: int) -> None:
    """Empties the first slots and sets the step, in one launch.

    Args:
        current: The state of the step, float64 [LANES, columns].
        slots: How many slots are in use.
        step: int64 [1].
        now: The step that begins.
    """
    block = 256
    with gpu.device_of(current):
        empty_slots[(lanes.LANES * max(1, triton.cdiv(slots, block)),)](
            current, current.shape[1], slots, step, now, BLOCK=block, num_warps=4, enable_fp_fusion=False
        )


def pack(
    at: Sequence[int], values: Sequence[torch.Tensor | float], weight: torch.Tensor | float
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Returns places and values as arguments of `merge_values`: what to do, and the halves of the number or address.

    Args:
        at: The place of each value.
        values: A number, or a tensor of one element of a dtype in `CODES`, each.
        weight: Another.

    Returns:
        Three tuples of one of `SIZES` plus one: the weight is last.
    """
    size = next(size for size in SIZES if size >= len(values))
    entries = [_entry(place, value) for place, value in zip(at, values, strict=True)]
    entries += [(_argument(_NOTHING), _argument(0), _argument(0))] * (size - len(values))
    targets, lows, highs = zip(*entries, _entry(0, weight), strict=True)
    return targets, lows, highs


def _entry(place: int, value: torch.Tensor | float) -> tuple[int, int, int]:
    if isinstance(value, torch.Tensor):
        code, bits = CODES[value.dtype], value.data_ptr()
    else:
        code, bits = _NUMBER, struct.unpack("<Q", struct.pack("<d", value))[0]
    return _argument(place << 4 | code), _argument(bits & 0xFFFFFFFF), _argument(bits >> 32)


def _argument(number: int) -> int:
    return (number << 1 | 1) + _OFFSET


def _readable(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that a kernel can read: of one of the dtypes, with no sign to be flipped first."""
    tensor = tensor.detach().resolve_neg()
    return tensor if tensor.dtype in CODES else tensor.to(torch.float64)


@triton.jit
def _unpack(arguments, SIZE: tl.constexpr):
    """The first SIZE of some arguments, as a vector."""
    index = tl.arange(0, SIZE)
    unpacked = tl.zeros((SIZE,), tl.int64)
    for k in tl.static_range(SIZE):
        unpacked = tl.where(index == k, (arguments[k] - OFFSET) >> 1, unpacked)
    return unpacked


@triton.jit
def _read(bits, code):
    """The values, float64: what the bits are, or what lies at that address."""
    value = bits.to(tl.float64, bitcast=True)
    value = tl.where(code == 1, tl.load(bits.to(tl.pointer_type(tl.float64)), mask=code == 1, other=0.0), value)
    value = _read_as(bits, code, value, 2, tl.float32)
    value = _read_as(bits, code, value, 3, tl.float16)
    value = _read_as(bits, code, value, 4, tl.bfloat16)
    value = _read_as(bits, code, value, 5, tl.int64)
    value = _read_as(bits, code, value, 6, tl.int32)
    value = _read_as(bits, code, value, 7, tl.int16)
    value = _read_as(bits, code, value, 8, tl.int8)
    return _read_as(bits, code, value, 9, tl.uint8)


@triton.jit
def _read_as(bits, code, value, CODE: tl.constexpr, ELEMENT: tl.constexpr):
    read = tl.load(bits.to(tl.pointer_type(ELEMENT)), mask=code == CODE, other=0)
    return tl.where(code == CODE, read.to(tl.float64), value)


@triton.jit(do_not_specialize_on_alignment=["current", "table"])
def merge_values(current: torch.Tensor, columns, table: torch.Tensor, targets, lows, highs, LANE: tl.constexpr):
    """Merges each value into its slot. One program: nobody else touches the state meanwhile."""
    SIZE: tl.constexpr = len(targets) - 1
    target = _unpack(targets, SIZE)
    value = _read(_unpack(lows, SIZE) | (_unpack(highs, SIZE) << 32), target & 15)
    # The weight as a vector too, for one way of reading.
    nothing = tl.zeros((SIZE,), tl.int64)
    low, high = (lows[SIZE] - OFFSET) >> 1, (highs[SIZE] - OFFSET) >> 1
    weight = _read(nothing + (low | (high << 32)), nothing + (((targets[SIZE] - OFFSET) >> 1) & 15))
    mask = (target & 15) != 15
    slot = tl.load(table + (target >> 4), mask=mask, other=-1)
    mask = mask & (slot >= 0)
    cell = current + LANE * columns + slot
    before = tl.load(cell, mask=mask, other=0.0)
    if LANE == SUM:
        merged = tl.where(weight == 0.0, before, before + value * weight)
    elif LANE == LAST:
        merged = value
    else:
        extreme = -value if LANE == NEGATED_MIN else value
        merged = tl.where((extreme > before) | (extreme != extreme), extreme, before)
    tl.store(cell, merged, mask=mask)
    weights = current + WEIGHT * columns + slot
    tl.store(weights, tl.load(weights, mask=mask, other=0.0) + weight, mask=mask)
    counts = current + COUNT * columns + slot
    tl.store(counts, tl.load(counts, mask=mask, other=0.0) + 1.0, mask=mask)


@triton.jit(do_not_specialize=["slots", "now"], do_not_specialize_on_alignment=["current", "step"])
def empty_slots(
    current: torch.Tensor, columns, slots: tl.int32, step: torch.Tensor, now: tl.int64, BLOCK: tl.constexpr
):
    """Writes the initial state to the first slots, a program for each lane and block, and the step."""
    lane = tl.program_id(0) % LANES
    slot = tl.program_id(0) // LANES * BLOCK + tl.arange(0, BLOCK)
    initial = tl.where((lane == MAX) | (lane == NEGATED_MIN), float("-inf"), 0.0).to(tl.float64)
    tl.store(current + lane * columns + slot, initial + tl.zeros((BLOCK,), tl.float64), mask=slot < slots)
    tl.store(step, now)  # the same by all
