"""What the histogram kernels cost as machine code: compiled ahead of time, no GPU needed.

    PYTHONPATH=.:kernels python -m bench.histogram_machine_code

With all statistics. An H100's multiprocessor issues 4 warp instructions a clock and reads
about 13.4 bytes a clock at 3.0 TB/s and 1.7 GHz: below 13 instructions an element, float32 is limited by memory.
"""

import torch
import triton

from bench.machine_code import CUOBJDUMP, IS_HISTOGRAM_FAST, compile_kernel, inner_loop
from d9d_tracker_kernels.binning import EXPONENTIAL, INTEGER, LINEAR

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int32, torch.int64)
BINNINGS = {"exponential": (EXPONENTIAL, 2048), "linear": (LINEAR, 64), "integer": (INTEGER, 64)}


def main() -> None:
    print(
        f"triton {triton.__version__}, {'cuobjdump found' if CUOBJDUMP.exists() else 'cuobjdump not found: no counts'}"
    )
    print(
        f"{'target':7} {'binning':12} {'dtype':9} {'kernel':6} {'counting':10} {'instr/elem':>10} {'float64':>8} "
        f"{'registers':>9} {'stack':>5}  loads"
    )
    for target in ("sm_80", "sm_90"):
        for inline_ptx in (True, False) if IS_HISTOGRAM_FAST else (True,):
            for binning in BINNINGS:
                for dtype in DTYPES:
                    for many in (False, True):
                        print_row(target, binning, dtype, many=many, inline_ptx=inline_ptx)
    for dtype in DTYPES:
        compile_kernel("gfx942", dtype)
        print(f"gfx942  {name(dtype):9} {'one':6} {'portable':10} compiles")


def print_row(target: str, binning: str, dtype: torch.dtype, *, many: bool, inline_ptx: bool) -> None:
    kind, bins = BINNINGS[binning]
    kernel = compile_kernel(target, dtype, many=many, inline_ptx=inline_ptx, kind=kind, bins=bins)
    counting = "inline PTX" if inline_ptx else "portable"
    label = f"{target:7} {binning:12} {name(dtype):9} {'many' if many else 'one':6} {counting:10}"
    if not CUOBJDUMP.exists():
        print(f"{label} compiles")
        return
    loop = inner_loop(kernel, dtype)
    loads = {opcode: number for opcode, number in loop.instructions.items() if opcode.startswith("LDG")}
    per_element = f"{loop.instructions_per_element:10.2f} {loop.float64_per_element:8.2f}"
    print(f"{label} {per_element} {loop.registers:9} {loop.stack:5}  {loads}")


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()
