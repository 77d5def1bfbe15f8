"""Statistics of a tile, as it lies in the registers of a program's threads."""

# Kernels are in Triton's language, which only looks like Python: pyright cannot type it.
# pyright: reportArgumentType=false, reportInvalidTypeForm=false, reportOperatorIssue=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl

from d9d_tracker_kernels.cells import widen


@triton.jit
def sum_tile(x, UNROLL: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr):
    """[UNROLL * THREADS * VECTOR] -> [THREADS], summed.

    This is the order in which a tile lies in the threads' registers: each thread adds up its own elements and no two
    threads talk.
    """
    return tl.sum(tl.sum(tl.reshape(x, [UNROLL, THREADS, VECTOR]), 2), 0)


@triton.jit
def sum_squares_tile(x, UNROLL: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr):
    """Sum of squares, [THREADS]. In pairs, because a * a + b * b takes two instructions for two elements."""
    a, b = tl.split(tl.reshape(x, [UNROLL * THREADS * VECTOR // 2, 2]))
    # int64 holds what was int32: two squares are below 2**64.
    is_exact: tl.constexpr = x.dtype == tl.int64
    pairs = (a * a + b * b).to(tl.uint64, bitcast=True).to(tl.float64) if is_exact else tl.fma(a, a, b * b)
    return sum_tile(pairs, UNROLL, THREADS, VECTOR // 2)


@triton.jit
def min_tile(x, UNROLL: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr):
    """The smallest value that each thread holds, [THREADS]."""
    return tl.min(tl.min(tl.reshape(x, [UNROLL, THREADS, VECTOR]), 2), 0)


@triton.jit
def max_tile(x, UNROLL: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr):
    """The largest value that each thread holds, [THREADS]."""
    return tl.max(tl.max(tl.reshape(x, [UNROLL, THREADS, VECTOR]), 2), 0)


@triton.jit
def finite_moments(base, head, end, first, stop, TILE: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr):
    """The second, exact reading of tiles [first, stop): moments of the finite values, and counts of the others.

    In small units of THREADS * VECTOR elements, since float64 fills the registers fast.
    """
    UNIT: tl.constexpr = THREADS * VECTOR
    inf = float("inf")
    total = tl.zeros([THREADS], tl.float64)
    squares = tl.zeros([THREADS], tl.float64)
    smallest = tl.full([THREADS], inf, tl.float64)
    largest = tl.full([THREADS], -inf, tl.float64)
    nan = tl.zeros([THREADS], tl.int32)
    posinf = tl.zeros([THREADS], tl.int32)
    neginf = tl.zeros([THREADS], tl.int32)
    for unit in range(first * (TILE // UNIT), stop * (TILE // UNIT)):
        index = unit * UNIT + tl.arange(0, UNIT)
        mask = (index >= head) & (index < end)
        x = widen(tl.load(base + index, mask=mask, other=0)).to(tl.float64)
        is_finite = mask & (tl.abs(x) < inf)
        finite = tl.where(is_finite, x, 0.0)
        total += sum_tile(finite, 1, THREADS, VECTOR)
        squares += sum_squares_tile(finite, 1, THREADS, VECTOR)
        smallest = tl.minimum(smallest, min_tile(tl.where(is_finite, x, inf), 1, THREADS, VECTOR))
        largest = tl.maximum(largest, max_tile(tl.where(is_finite, x, -inf), 1, THREADS, VECTOR))
        nan += sum_tile((x != x).to(tl.int32), 1, THREADS, VECTOR)
        posinf += sum_tile((x == inf).to(tl.int32), 1, THREADS, VECTOR)
        neginf += sum_tile((x == -inf).to(tl.int32), 1, THREADS, VECTOR)
    return (
        tl.sum(total),
        tl.sum(squares),
        tl.min(smallest),
        tl.max(largest),
        tl.sum(nan.to(tl.int64)),
        tl.sum(posinf.to(tl.int64)),
        tl.sum(neginf.to(tl.int64)),
    )
