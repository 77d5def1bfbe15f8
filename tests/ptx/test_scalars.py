"""The scalar kernels as compiled for NVIDIA GPUs, executed against the reference."""

import functools
import random

import program
import pytest
import torch
import triton
from executor import launch
from memory import GlobalMemory
from scalar_checks import COLUMNS, assert_same_state, bank, values_of_every_kind
from triton.compiler import ASTSource

from bench.machine_code import TARGETS
from d9d_tracker_kernels import scalar_kernels
from d9d_tracker_kernels.lanes import INITIAL, LANES, LAST, MAX, NEGATED_MIN, SUM
from d9d_tracker_kernels.scalars import flat_numbers, merge_number


@functools.cache
def compile_merge(target: str, size: int, lane: int):
    """Compile `merge_values` for so many values; return its PTX."""
    kernel = scalar_kernels.merge_values
    integers = ("i64",) * (size + 1)
    types = ["*fp64", "i32", "*i64", integers, integers, integers, "constexpr"]
    signature = dict(zip(kernel.arg_names, types, strict=True))
    source = ASTSource(kernel, signature, {"LANE": lane})
    compiled = triton.compile(source, target=TARGETS[target], options={"num_warps": 1, "enable_fp_fusion": False})
    return program.read(compiled.asm["ptx"], compiled.metadata.shared)


@pytest.mark.parametrize("lane", [SUM, MAX, NEGATED_MIN, LAST])
@pytest.mark.parametrize(("target", "size"), [("sm_90", 1), ("sm_90", 8), ("sm_90", 64), ("sm_80", 8)])
def test_values_of_every_kind(target, size, lane):
    text = compile_merge(target, size, lane)
    actual, expected = bank(), bank()
    memory = GlobalMemory()
    state = memory.place("the state", actual.numpy(), is_writable=True)
    table = torch.tensor([(7 * place) % COLUMNS if place % 3 else -1 for place in range(80)])
    places = memory.place("places", table.numpy())
    every = [scalar_kernels._readable(v) if isinstance(v, torch.Tensor) else v for v in values_of_every_kind()]
    # As bytes, because NumPy knows no bfloat16; what shares memory shares an address.
    addresses = {
        tensor.data_ptr(): memory.place(
            "a value", torch.empty(1, dtype=tensor.dtype).copy_(tensor.flatten()).view(torch.uint8).numpy()
        )
        for tensor in every
        if isinstance(tensor, torch.Tensor)
    }
    weights = [1.0, 0.0, 2.5, *(value for value in every if isinstance(value, torch.Tensor) and value > 0)]
    room = max(1, size - 1)
    for number, first in enumerate(range(0, len(every), room)):
        values, weight = every[first : first + room], weights[number % len(weights)]
        at = random.Random(number).sample(range(80), len(values))
        targets, lows, highs = scalar_kernels.pack(at, values, weight)
        lows, highs = moved([*values, *[0.0] * (size - len(values)), weight], lows, highs, addresses)
        arguments = [state, COLUMNS, places, *targets, *lows, *highs]
        launch(text, memory, arguments, 32, 1, random.Random(number))
        for place, value in zip(at, values, strict=True):
            if (slot := int(table[place])) >= 0:
                merge_number(flat_numbers(expected), expected.stride(), slot, lane, float(value), float(weight))
    assert_same_state(actual, expected)


def moved(values, lows, highs, addresses):
    """The halves of the addresses, where the executor's memory has the values."""
    lows, highs = list(lows), list(highs)
    for index, value in enumerate(values):
        if isinstance(value, torch.Tensor):
            address = addresses[value.data_ptr()]
            lows[index] = scalar_kernels._argument(address & 0xFFFFFFFF)
            highs[index] = scalar_kernels._argument(address >> 32)
    return lows, highs


@pytest.mark.parametrize("slots", [0, 1, 257, COLUMNS])
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_a_step_begins_with_the_slots_in_use_empty(target, slots):
    kernel = scalar_kernels.empty_slots
    types = ["*fp64", "i32", "i32", "*i64", "i64", "constexpr"]
    source = ASTSource(kernel, dict(zip(kernel.arg_names, types, strict=True)), {"BLOCK": 256})
    compiled = triton.compile(source, target=TARGETS[target], options={"num_warps": 4})
    text = program.read(compiled.asm["ptx"], compiled.metadata.shared)
    state = torch.arange(LANES * COLUMNS, dtype=torch.float64).reshape(LANES, COLUMNS)
    before, step = state.clone(), torch.tensor([3])
    memory = GlobalMemory()
    arguments = [
        memory.place("the state", state.numpy(), is_writable=True),
        COLUMNS,
        slots,
        memory.place("the step", step.numpy(), is_writable=True),
        2**40,
    ]
    launch(text, memory, arguments, 128, LANES * max(1, triton.cdiv(slots, 256)), random.Random(slots))
    assert step.item() == 2**40
    assert torch.equal(state[:, :slots], torch.tensor(INITIAL, dtype=torch.float64)[:, None].expand(-1, slots))
    assert torch.equal(state[:, slots:], before[:, slots:])
