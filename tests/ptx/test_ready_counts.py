"""The kernel that adds ready counts, executed against the reference."""

import random

import program
import pytest
import torch
import triton
from executor import launch
from histogram_checks import assert_same_histograms
from memory import GlobalMemory
from triton.compiler import ASTSource

from bench.machine_code import TARGETS
from d9d_tracker_kernels import ready_counts, reference
from d9d_tracker_kernels.bank import allocate

ELEMENTS = {torch.int64: "i64", torch.int32: "i32", torch.uint8: "u8"}


@pytest.mark.parametrize("numel", [1, 127, 300, 2046])
@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_ready_counts(target, dtype, numel):
    kernel = ready_counts.add_counts
    types = [f"*{ELEMENTS[dtype]}", "i32", "*i64", "*fp64", "*i64", "*i64", "i64", "i64", "constexpr"]
    width = max(128, triton.next_power_of_2(numel))
    source = ASTSource(kernel, dict(zip(kernel.arg_names, types, strict=True)), {(8,): width})
    compiled = triton.compile(source, target=TARGETS[target])
    values = torch.randint(0, 100, (numel,), generator=torch.Generator().manual_seed(numel)).to(dtype)
    actual, expected = allocate(2, "cpu"), allocate(2, "cpu")
    memory = GlobalMemory()
    place = memory.place("the values", values.numpy())
    counts = memory.place("counts", actual.counts.numpy(), is_writable=True)
    moments = memory.place("moments", actual.moments.numpy(), is_writable=True)
    step, places = torch.tensor([0]), torch.tensor([-1, 1])
    table = memory.place("places", places.numpy())
    arguments = [place, numel, counts, moments, table, memory.place("the step", step.numpy()), 1, 2]
    text = program.read(compiled.asm["ptx"], compiled.metadata.shared)
    for now, row in ((0, 1), (1, 1), (2, 1), (4, -1)):
        step.fill_(now)
        places[1] = row
        launch(text, memory, arguments, 128, 1, random.Random(now))
        if now % 2 == 0 and row >= 0:
            reference.add_counts_(values, expected.counts, expected.moments, now, 1)
    assert_same_histograms(actual, expected)
    assert torch.equal(actual.moments, expected.moments)
