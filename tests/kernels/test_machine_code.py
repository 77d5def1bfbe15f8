"""What the kernels compile to, ahead of time, for GPUs that are not here."""

import re

import pytest
import torch

from d9d_tracker_kernels import EXPONENTIAL, INTEGER, LINEAR, launch
from d9d_tracker_kernels.machine_code import CUOBJDUMP, TARGETS, compile_kernel, inner_loop
from d9d_tracker_kernels.state import PROGRAMS_PER_MULTIPROCESSOR

MOST_INSTRUCTIONS = 13
NVIDIA = [target for target, gpu in TARGETS.items() if gpu.backend == "cuda"]
DTYPES = [torch.float32, torch.bfloat16]
# Which ways of counting the installed Triton compiles well.
COUNTING = [pytest.param(True, id="inline PTX")]
if launch.IS_HISTOGRAM_FAST:
    COUNTING.append(pytest.param(False, id="portable"))


@pytest.mark.parametrize("inline_ptx", COUNTING)
@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target", NVIDIA)
def test_the_inner_loop_reads_16_bytes_at_a_time_and_nothing_spills(target, dtype, many, inline_ptx):
    kernel = compile_kernel(target, dtype, many=many, inline_ptx=inline_ptx)
    assert "ld.global.v4.b32" in kernel.asm["ptx"]
    if CUOBJDUMP.exists():
        loop = inner_loop(kernel, dtype)
        loads = {opcode for opcode in loop.instructions if opcode.startswith("LD")} - {"LDS"}
        assert loads == {"LDG.E.128"}
        assert loop.stack == 0
        assert loop.registers * launch.THREADS * PROGRAMS_PER_MULTIPROCESSOR <= 65_536, (
            "a multiprocessor runs two programs at once"
        )
        assert loop.instructions_per_element <= MOST_INSTRUCTIONS


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("dtype", "kind", "bins"),
    [
        (torch.float16, LINEAR, 64),
        (torch.float64, LINEAR, 2046),
        (torch.uint8, INTEGER, 8),
        (torch.int64, INTEGER, 300),
    ],
    ids=str,
)
def test_other_binnings_compile(target, dtype, kind, bins):
    compile_kernel(target, dtype, kind=kind, bins=bins, many=dtype == torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_amd_reads_16_bytes_at_a_time_and_spills_no_vector_register(dtype):
    for many in (False, True):
        code = compile_kernel("gfx942", dtype, many=many).asm["amdgcn"]
        assert "_load_dwordx4" in code
        assert "vgpr_spill_count: 0" in code


def test_rounding_is_as_on_the_host():
    ptx = compile_kernel("sm_90", torch.float32, kind=LINEAR, bins=64).asm["ptx"]
    assert "mul.rn.f64" in ptx
    fused = re.findall(r"fma\.rn\.f64\s+%\w+, (%\w+), (%\w+),", ptx)
    assert fused, "squares are fused on purpose"
    assert all(left == right for left, right in fused), "an edge is a product, rounded, then a sum"


@pytest.mark.parametrize(("kind", "bins"), [(EXPONENTIAL, 2048), (LINEAR, 64), (INTEGER, 64)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_denormals_are_not_flushed_to_zero(dtype, kind, bins):
    assert ".ftz" not in compile_kernel("sm_90", dtype, kind=kind, bins=bins).asm["ptx"]
