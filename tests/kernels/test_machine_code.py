"""What the kernels compile to, ahead of time, for GPUs that are not here."""

import re

import pytest
import torch

from bench.machine_code import IS_HISTOGRAM_FAST, TARGETS, compile_kernel, inner_loop
from d9d_tracker_kernels import histogram, launch
from d9d_tracker_kernels.binning import EXPONENTIAL, INTEGER, LINEAR
from d9d_tracker_kernels.device import PROGRAMS_PER_MULTIPROCESSOR

# An H100 reads float32 at full speed with fewer than 13 instructions an element. Triton 3.6 makes 12.3 of them.
MOST_INSTRUCTIONS = {torch.float32: 12 if IS_HISTOGRAM_FAST else 12.5, torch.bfloat16: 13}
NVIDIA = ["sm_80", "sm_90"]
DTYPES = list(MOST_INSTRUCTIONS)
# Which ways of counting the installed Triton compiles well.
COUNTING = [pytest.param(True, id="inline PTX")]
if IS_HISTOGRAM_FAST:
    COUNTING.append(pytest.param(False, id="portable"))


@pytest.mark.parametrize("inline_ptx", COUNTING)
@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target", NVIDIA)
def test_the_inner_loop_reads_16_bytes_at_a_time_and_nothing_spills(target, dtype, many, inline_ptx):
    kernel = compile_kernel(target, dtype, many=many, inline_ptx=inline_ptx)
    loop = inner_loop(kernel, dtype)
    loads = {opcode for opcode in loop.instructions if opcode.startswith("LD")} - {"LDS"}
    assert loads == {"LDG.E.128"}
    assert loop.stack == 0
    assert loop.instructions_per_element <= MOST_INSTRUCTIONS[dtype] + (0 if inline_ptx else 0.5)
    registers = loop.registers * launch.THREADS * PROGRAMS_PER_MULTIPROCESSOR
    assert registers <= 65_536, "a multiprocessor runs two programs at once"


@pytest.mark.parametrize(("kind", "bins"), [(LINEAR, 64), (INTEGER, 64), (EXPONENTIAL, 512)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_binning_spills(dtype, kind, bins):
    for many in (False, True):
        kernel = compile_kernel("sm_90", dtype, many=many, inline_ptx=True, kind=kind, bins=bins)
        assert inner_loop(kernel, dtype).stack == 0


# A 4090, whose float64 is 64 times as slow as float32, reads an element while it computes 0.6 of these for each byte.
FLOAT64 = {
    (LINEAR, torch.float32): 0.25,
    (LINEAR, torch.bfloat16): 0.25,
    (INTEGER, torch.float32): 0.25,
    (EXPONENTIAL, torch.float32): 0.25,
    (INTEGER, torch.int32): 1.2,
    (INTEGER, torch.int64): 3.5,
    (EXPONENTIAL, torch.int32): 2.2,
    (EXPONENTIAL, torch.int64): 3.5,
}


@pytest.mark.parametrize(("kind", "dtype"), FLOAT64, ids=str)
def test_float64_does_not_keep_the_memory_waiting_where_it_is_slow(kind, dtype):
    bins = 2048 if kind == EXPONENTIAL else 64
    loop = inner_loop(compile_kernel("sm_80", dtype, many=True, inline_ptx=True, kind=kind, bins=bins), dtype)
    assert loop.float64_per_element <= FLOAT64[kind, dtype]
    assert loop.stack == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.int32, torch.uint8], ids=str)
def test_wide_statistics_have_the_registers_that_they_need(dtype):
    """The limit of the others would make some of them spill."""
    loop = inner_loop(compile_kernel("sm_90", dtype, many=False, inline_ptx=True), dtype)
    assert loop.stack == 0


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_elements_are_addressed_in_64_bits(many):
    ttir = compile_kernel("sm_90", torch.bfloat16, many=many).asm["ttir"]
    ranges = set(re.findall(r"(%\w+) = tt.make_range", ttir))
    steps = re.findall(r"tt.addptr %\w+, (%\w+) : \S*!tt.ptr<bf16>>?, (\S+)", ttir)
    assert len(steps) >= 3
    # Within a tile 32 bits do.
    assert all(bits.endswith(("i64", "xi64>")) for offset, bits in steps if offset not in ranges)


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_sums_are_visible_to_the_last_program(many):
    ptx = compile_kernel("sm_90", torch.float32, many=many).asm["ptx"]
    before, after = ptx.split("atom.global.gpu.acq_rel.add.u64")
    stored, _, since = before.rpartition("st.global.b64")
    assert stored
    assert "bar.sync" in since
    assert after.count("ld.global.cg") == 4, "sum, squares, minimum and maximum: an L1 may hold what was there before"
    assert "bar.sync" in after.split("ld.global.cg")[0]


@pytest.mark.parametrize("kernel", [histogram.count_one, histogram.count_many])
def test_one_variant_whatever_the_numbers_and_addresses(kernel):
    for parameter in kernel.params:
        if not parameter.is_constexpr:
            assert parameter.do_not_specialize or parameter.do_not_specialize_on_alignment, parameter.name


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
def test_blackwell_takes_as_little_as_hopper(dtype):
    loop = inner_loop(compile_kernel("sm_100", dtype, many=True, inline_ptx=True), dtype)
    assert loop.stack == 0
    assert loop.instructions_per_element <= MOST_INSTRUCTIONS[dtype]
    assert loop.registers * launch.THREADS * PROGRAMS_PER_MULTIPROCESSOR <= 65_536


@pytest.mark.parametrize("dtype", launch.ELEMENT_TYPES, ids=str)
@pytest.mark.parametrize("target", ["gfx942", "gfx1100"])
def test_amd_reads_16_bytes_at_a_time_and_spills_no_vector_register(target, dtype):
    for many in (False, True) if dtype in DTYPES else (True,):
        code = compile_kernel(target, dtype, many=many).asm["amdgcn"]
        assert re.search("_load_(dwordx4|b128)", code)
        assert "vgpr_spill_count: 0" in code
        assert "private_segment_fixed_size: 0" in code


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
