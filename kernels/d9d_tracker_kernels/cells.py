"""Triton device functions: which cell a value belongs to. The same cells as in `reference.py`.

The patterns of floats are those of IEEE 754: a sign, 8 exponent bits (bias 127) and 23 mantissa bits in float32; a
sign, 11 (bias 1023) and 52 in float64.
"""

# Kernels are in Triton's language, which only looks like Python: pyright cannot type it.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

import triton
import triton.language as tl

from d9d_tracker_kernels import binning

EXPONENTIAL = tl.constexpr(binning.EXPONENTIAL)
LINEAR = tl.constexpr(binning.LINEAR)


@triton.jit
def widen(x):
    """The values in the float type of the statistics: float32, or float64 for wide types.

    Exact but for int64 beyond 2**53, which is rounded to nearest.
    """
    if (x.dtype == tl.int64) or (x.dtype == tl.int32) or (x.dtype == tl.float64):
        wide = x.to(tl.float64)
    elif x.dtype == tl.bfloat16:
        # bfloat16 is the upper half of a float32. Spelled out, it takes fewer instructions than a conversion.
        wide = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        wide = x.to(tl.float32)
    return wide


@triton.jit
def _on_its_side(x):
    """The values as `widen` gives them, but int64 beyond 2**53 rounded to odd: it stays on its side of every edge.

    See `_round_to_odd` in reference.py.
    """
    if x.dtype == tl.int64:
        rounded = (x & ~1023) | tl.where((x & 1023) != 0, 1024, 0)
        is_exact = (x > -(1 << 53)) & (x < (1 << 53))
        wide = tl.where(is_exact, x, rounded).to(tl.float64)
    else:
        wide = widen(x)
    return wide


@triton.jit
def _exponential_cell(x, K: tl.constexpr):
    """Sign, 8 exponent bits and K mantissa bits of the float32 pattern. Non-finite values get cells of exponent 255."""
    if x.dtype == tl.float32:
        cell = (x.to(tl.uint32, bitcast=True) >> (23 - K)).to(tl.int32)
    else:
        # The float64 pattern truncated, its exponent moved from bias 1023 to bias 127 and held in float32's range.
        pattern = x.to(tl.int64, bitcast=True)
        high_word = ((pattern >> 32) & 0x7FFFFFFF).to(tl.int32)
        normal = tl.minimum((high_word >> (20 - K)) - (896 << K), (255 << K) - 1)
        denormal = (tl.minimum(tl.abs(x), 2.0**-126) * 2.0 ** (126 + K)).to(tl.int32)
        magnitude = tl.where(normal < (1 << K), denormal, normal)
        magnitude = tl.where(high_word >= 0x7FF00000, 255 << K, magnitude)
        cell = magnitude + tl.where(pattern < 0, 256 << K, 0)
    return cell


@triton.jit
def _linear_cell(x, bins, low, closing, width, inverse_width):
    """0 for under, 1..bins, bins + 1 for over and NaN: the nearest edge, and on which side of it the value lies.

    The nearest edge is guessed in the values' precision. `binning.validate` keeps bins wide enough for the guess to be
    right. The edge itself is computed as `binning.linear_edges` does, so the comparison is exact (hence no fusing of
    multiplication and addition, see launch.py). `closing` is the next number above the upper end: comparing with it
    leaves the last bin closed.
    """
    low_x = tl.full([], low, tl.float64).to(x.dtype)
    guess = (x - low_x) * tl.full([], inverse_width, tl.float64).to(x.dtype)
    # Held between 0 and bins, a truncation rounds down. (tl.floor would take denormals for zero on NVIDIA GPUs.)
    cell = tl.maximum(tl.minimum(guess + 0.5, bins.to(x.dtype)), 0.0).to(tl.int32)
    edge = (low + cell.to(tl.float64) * width).to(tl.float32).to(x.dtype)
    threshold = tl.where(cell == bins, tl.full([], closing, tl.float64).to(x.dtype), edge)
    return tl.where(x < threshold, cell, cell + 1)


@triton.jit
def _integer_cell(x, bins):
    """0 for negative, k + 1 for [k, k + 1), bins + 1 for `bins` and more and for NaN."""
    k = tl.maximum(tl.minimum(x, bins.to(x.dtype)), 0.0).to(tl.int32)
    return tl.where(x < 0, 0, k + 1)


@triton.jit
def find_cell(values, binning, KIND: tl.constexpr, K: tl.constexpr):
    """The cell of each value: int32, same shape as the values.

    `binning` is (bins, low, closing, width, inverse_width), prepared by `launch.py`. K is the number of mantissa bits
    of exponential cells. Non-finite values come out in a cell that the caller can tell, see each kind.
    """
    bins, low, closing, width, inverse_width = binning
    x = _on_its_side(values)
    if KIND == EXPONENTIAL:
        cell = _exponential_cell(x, K)
    elif KIND == LINEAR:
        cell = _linear_cell(x, bins, low, closing, width, inverse_width)
    else:
        cell = _integer_cell(x, bins)
    return cell
