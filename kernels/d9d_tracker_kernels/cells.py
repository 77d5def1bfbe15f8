"""Triton device functions: which cell a value belongs to. The same cells as in `reference.py`.

The patterns of floats are those of IEEE 754: a sign, 8 exponent bits (bias 127) and 23 mantissa bits in float32; a
sign, 11 (bias 1023) and 52 in float64.
"""

# Kernels are in Triton's language, which only looks like Python: pyright cannot type it.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

import triton
import triton.language as tl

from d9d_tracker_kernels import binning, shared_atomics

EXPONENTIAL = tl.constexpr(binning.EXPONENTIAL)
LINEAR = tl.constexpr(binning.LINEAR)
INTEGER = tl.constexpr(binning.INTEGER)


@triton.jit
def widen(x):
    """The values in a type to compare them in, exactly: float32, or their own if that is wider."""
    if (x.dtype == tl.int64) or (x.dtype == tl.int32) or (x.dtype == tl.float64):
        wide = x
    elif x.dtype == tl.bfloat16:
        # bfloat16 is the upper half of a float32. Spelled out, it takes fewer instructions than a conversion.
        wide = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        wide = x.to(tl.float32)
    return wide


@triton.jit
def summand(x):
    """Values as `widen` gives them in the type to sum a few in: int32 as int64, int64 as float64, the others as is.

    int64 beyond 2**53 is rounded to odd, so that it stays on its side of every edge: see `_round_to_odd` in
    reference.py.
    """
    if x.dtype == tl.int32:
        exact = x.to(tl.int64)
    elif x.dtype == tl.int64:
        rounded = (x & ~1023) | tl.where((x & 1023) != 0, 1024, 0)
        is_exact = (x > -(1 << 53)) & (x < (1 << 53))
        exact = tl.where(is_exact, x, rounded).to(tl.float64)
    else:
        exact = x
    return exact


@triton.jit
def _exponential_cell(x, K: tl.constexpr, IS_INTEGER: tl.constexpr):
    """Sign, 8 exponent bits and K mantissa bits of the float32 pattern. Non-finite values get cells of exponent 255."""
    if x.dtype == tl.float32:
        cell = (x.to(tl.uint32, bitcast=True) >> (23 - K)).to(tl.int32)
    else:
        # The float64 pattern truncated, its exponent moved from bias 1023 to bias 127 and held in float32's range.
        pattern = x.to(tl.int64, bitcast=True)
        high_word = ((pattern >> 32) & 0x7FFFFFFF).to(tl.int32)
        magnitude = (high_word >> (20 - K)) - (896 << K)
        if IS_INTEGER:
            magnitude = tl.maximum(magnitude, 0)
        else:
            denormal = (tl.minimum(tl.abs(x), 2.0**-126) * 2.0 ** (126 + K)).to(tl.int32)
            magnitude = tl.where(magnitude < (1 << K), denormal, tl.minimum(magnitude, (255 << K) - 1))
            magnitude = tl.where(high_word >= 0x7FF00000, 255 << K, magnitude)
        cell = magnitude + tl.where(pattern < 0, 256 << K, 0)
    return cell


@triton.jit
def _edge(index, bins, low, closing, width):
    """The edges of linear bins, float32, as `binning.linear_edges` computes them, with `closing` for the last one.

    Hence no fusing of multiplication and addition, see launch.py. Comparing with `closing`, the next number above the
    upper end, leaves the last bin closed.
    """
    edge = (low + index.to(tl.float64) * width).to(tl.float32)
    return tl.where(index == bins, tl.full([], closing, tl.float64).to(tl.float32), edge)


@triton.jit
def allocate(binning, KIND: tl.constexpr, CELL_COUNT: tl.constexpr, THREADS: tl.constexpr, INLINE_PTX: tl.constexpr):
    """A program's cells, none counted: see `shared_atomics.allocate`, or zeros int32 [CELL_COUNT].

    With inline PTX, the edges of linear bins lie behind them: float64 arithmetic for each value would take longer than
    reading it where float64 is slow.
    """
    if INLINE_PTX:
        edges = None
        if KIND == LINEAR:
            bins, low, closing, width, _ = binning
            edges = _edge(tl.arange(0, CELL_COUNT), bins, low, closing, width)
        cells = shared_atomics.allocate(edges, CELL_COUNT, THREADS)
    else:
        cells = tl.zeros([CELL_COUNT], tl.int32)
    return cells


@triton.jit
def _linear_cell(x, cells, binning, INLINE_PTX: tl.constexpr):
    """0 for under, 1..bins, bins + 1 for over and NaN: the nearest edge, and on which side of it the value lies.

    The nearest edge is guessed in float32. `binning.validate` keeps bins wide enough for the guess to be right.
    """
    bins, low, closing, width, inverse_width = binning
    distance = (x - tl.full([], low, tl.float64).to(x.dtype)).to(tl.float32)
    guess = distance * tl.full([], inverse_width, tl.float64).to(tl.float32)
    # Held between 0 and bins, a truncation rounds down. (tl.floor would take denormals for zero on NVIDIA GPUs.)
    cell = tl.maximum(tl.minimum(guess + 0.5, bins.to(tl.float32)), 0.0).to(tl.int32)
    edge = shared_atomics.edge(cells, cell) if INLINE_PTX else _edge(cell, bins, low, closing, width)
    if x.dtype == tl.float64:
        edge = tl.where(cell == bins, closing, edge.to(tl.float64))
    return tl.where(x < edge, cell, cell + 1)


@triton.jit
def _integer_cell(x, bins):
    """0 for negative, k + 1 for [k, k + 1), bins + 1 for `bins` and more and for NaN."""
    k = tl.maximum(tl.minimum(x, bins.to(x.dtype)), 0).to(tl.int32)
    return tl.where(x < 0, 0, k + 1)


@triton.jit
def find_cell(x, cells, binning, KIND: tl.constexpr, K: tl.constexpr, INLINE_PTX: tl.constexpr):
    """The cell of each value as `widen` gives it: int32, same shape.

    `cells` come from `allocate`. `binning` is (bins, low, closing, width, inverse_width), prepared by `launch.py`. K is
    the number of mantissa bits of exponential cells. Non-finite values come out in a cell that the caller can tell, see
    each kind.
    """
    IS_INTEGER: tl.constexpr = (x.dtype == tl.int32) or (x.dtype == tl.int64)
    if KIND == INTEGER:
        cell = _integer_cell(x, binning[0])
    else:
        exact = x.to(tl.float64) if x.dtype == tl.int32 else summand(x)
        if KIND == EXPONENTIAL:
            cell = _exponential_cell(exact, K, IS_INTEGER)
        else:
            cell = _linear_cell(exact, cells, binning, INLINE_PTX)
    return cell
