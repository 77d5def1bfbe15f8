"""Counting in shared memory by inline PTX, for NVIDIA GPUs.

Why it exists: the hardware can add to shared memory in one instruction (`red.shared.add`). Until Triton 3.7,
`tl.histogram` finds each count by ballots among the threads instead, more than 200 instructions an element at 2048
cells. From 3.8 on it adds in shared memory, too, but clears and reads the cells for each tile, with three barriers and
one more instruction an element.

Triton has no name for shared memory, so the array is declared in PTX text. PTX's instructions are described in
NVIDIA's "Parallel Thread Execution ISA".
"""

# Kernels are in Triton's language, which only looks like Python: pyright cannot type it.
# pyright: reportArgumentType=false

import triton
import triton.language as tl

# The array of the program's cells, 8 KiB, and behind them their edges, if there are any. Braces would end its life at
# once: it must stay visible to the texts below.
_DECLARE = tl.constexpr(".shared .align 16 .b32 cells_of_program[2048]; mov.u32 $0, cells_of_program;")
_DECLARE_BOTH = tl.constexpr(".shared .align 16 .b32 cells_of_program[4096]; mov.u32 $0, cells_of_program;")
_CLEAR = tl.constexpr("{ .reg .u32 a; mad.lo.u32 a, $1, 4, $2; st.shared.b32 [a], 0; mov.b32 $0, 0; }")
_COUNT = tl.constexpr("{ .reg .u32 a; mad.lo.u32 a, $1, 4, $2; red.shared.add.u32 [a], 1; mov.b32 $0, 0; }")
_COUNT_IF = tl.constexpr(
    "{ .reg .u32 a; .reg .pred p; setp.ne.b32 p, $3, 0; mad.lo.u32 a, $1, 4, $2;"
    " @p red.shared.add.u32 [a], 1; mov.b32 $0, 0; }"
)
_STORE_EDGE = tl.constexpr("{ .reg .u32 a; mad.lo.u32 a, $1, 4, $2; st.shared.f32 [a + 8192], $3; mov.b32 $0, 0; }")
_READ_EDGE = tl.constexpr("{ .reg .u32 a; mad.lo.u32 a, $1, 4, $2; ld.shared.f32 $0, [a + 8192]; }")
_READ = tl.constexpr("{ .reg .u32 a; mad.lo.u32 a, $1, 4, $2; ld.shared.u32 $0, [a]; }")


@triton.jit
def allocate(edges, CELL_COUNT: tl.constexpr, THREADS: tl.constexpr):
    """Declares and clears the program's cells, and keeps edges, float32 [CELL_COUNT] or None.

    Returns:
        The array's address in shared memory, int32.
    """
    # One element for each thread: the declaration must occur once in the program's text.
    thread = tl.arange(0, THREADS)
    declare: tl.constexpr = _DECLARE if edges is None else _DECLARE_BOTH
    address = tl.inline_asm_elementwise(declare, "=r,r", [thread], dtype=tl.int32, is_pure=False, pack=1)
    address = tl.max(address, 0)
    cell = tl.arange(0, CELL_COUNT)
    tl.inline_asm_elementwise(_CLEAR, "=r,r,r", [cell, address], dtype=tl.int32, is_pure=False, pack=1)
    if edges is not None:
        args = [cell, address, edges]
        tl.inline_asm_elementwise(_STORE_EDGE, "=r,r,r,f", args, dtype=tl.int32, is_pure=False, pack=1)
    tl.debug_barrier()
    return address


@triton.jit
def edge(address, cell):
    """The edges of the given numbers, float32."""
    return tl.inline_asm_elementwise(_READ_EDGE, "=f,r,r", [cell, address], dtype=tl.float32, is_pure=False, pack=1)


@triton.jit
def count(address, cell, mask):
    """Adds one to the cell of each element, or of each element where `mask` is set."""
    if mask is None:
        tl.inline_asm_elementwise(_COUNT, "=r,r,r", [cell, address], dtype=tl.int32, is_pure=False, pack=1)
    else:
        args = [cell, address, mask.to(tl.int32)]
        tl.inline_asm_elementwise(_COUNT_IF, "=r,r,r,r", args, dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def read(address, CELL_COUNT: tl.constexpr):
    """The cells when all threads have counted: int32 [CELL_COUNT]."""
    tl.debug_barrier()
    cell = tl.arange(0, CELL_COUNT)
    return tl.inline_asm_elementwise(_READ, "=r,r,r", [cell, address], dtype=tl.int32, is_pure=False, pack=1)
