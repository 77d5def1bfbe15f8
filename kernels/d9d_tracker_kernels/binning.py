"""Value to bin arithmetic: the layout of one histogram row and the edges that its cells stand for.

Guarantee: the edges reported by `cell_edges` are the edges used for counting, to the last bit, whatever the dtype of
the values and whichever path (CPU, GPU) counted them.

Three kinds of binning, given as plain numbers so that they fit into an operator's schema:

- `EXPONENTIAL`: the top bits of the float32 pattern (sign, 8 exponent bits, K mantissa bits), 512 * 2**K cells.
  It needs no range. Cells are closed on the side of zero: [a, b) above zero, (-b, -a] below.
- `LINEAR`: `bins` equal bins between `low` and `high`, the last one closed, values outside counted as under and over.
- `INTEGER`: one bin for each k in 0..bins-1, holding [k, k + 1), values outside counted as under and over.
"""

import math
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np

EXPONENTIAL: Final = 0
LINEAR: Final = 1
INTEGER: Final = 2

# One row of counts (int64) is HEADER numbers about the row, then CELLS cells. The header is 8 wide, not 6, so that the
# cells start on a 64-byte boundary.
HEADER: Final = 8
CALLS: Final = 0
LAST_STEP: Final = 1
ZEROS: Final = 2
NAN: Final = 3
POSINF: Final = 4
NEGINF: Final = 5
APART: Final = [ZEROS, NAN, POSINF, NEGINF]  # what is counted apart from the cells
CELLS: Final = 2048


class Moment(IntEnum):
    """The columns of one row of moments (float64), over the finite values: sums first, then the extremes."""

    SUM = 0
    SUM_SQUARES = 1
    MIN = 2
    MAX = 3


MOMENTS: Final = len(Moment)

_EXPONENTIAL_BINS: Final = (512, 1024, 2048)
_FLOAT32_SMALLEST_NORMAL: Final = 2.0**-126
_FLOAT32_LARGEST: Final = (2.0 - 2.0**-23) * 2.0**127


class SortedCells(NamedTuple):
    """The cells of a histogram in ascending order of value.

    Attributes:
        cells: int64 [..., bins], aligned with `cell_edges`: one cell between each pair of neighbouring edges.
        under: int64 [...], how many finite values lay below the first edge.
        over: int64 [...], how many finite values lay above the last edge.
    """

    cells: np.ndarray
    under: np.ndarray
    over: np.ndarray


def mantissa_bits(bins: int) -> int:
    """K in bins = 512 * 2**K, the number of mantissa bits that an exponential cell keeps."""
    return bins.bit_length() - 10


def round_to_float32(value: float) -> float:
    """The float32 nearest to `value`: the bounds that a linear binning really uses."""
    with np.errstate(over="ignore"):  # by NumPy, because torch computes nothing while it traces
        return float(np.float32(value))


def validate(kind: int, bins: int, low: float, high: float) -> None:
    """Refuses a binning that makes no sense.

    Args:
        kind: EXPONENTIAL, LINEAR or INTEGER.
        bins: Number of bins, under and over not counted.
        low: Lower end of a linear binning, rounded to float32; ignored by the other kinds.
        high: Upper end of a linear binning, rounded to float32; ignored by the other kinds.

    Raises:
        ValueError: With the value received and the next move.
    """
    if kind == EXPONENTIAL:
        if bins not in _EXPONENTIAL_BINS:
            raise ValueError(f"an exponential binning has 512, 1024 or 2048 bins, not {bins}: choose one of these")
        return
    if kind not in (LINEAR, INTEGER):
        raise ValueError(f"unknown kind of binning {kind}: use EXPONENTIAL (0), LINEAR (1) or INTEGER (2)")
    if not 1 <= bins <= CELLS - 2:
        raise ValueError(f"bins={bins}: choose between 1 and {CELLS - 2} bins")
    if kind == LINEAR:
        _validate_range(bins, low, high)


def _validate_range(bins: int, low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"low={low} and high={high} must be finite: NaN and Inf are counted apart from the bins")
    low32, high32 = round_to_float32(low), round_to_float32(high)
    if not high32 - low32 <= _FLOAT32_LARGEST:
        raise ValueError(f"the range low={low}, high={high} is wider than float32: use an exponential binning")
    if not low32 < high32:
        hint = "swap them" if low > high else "as float32 they are equal: choose a wider range"
        raise ValueError(f"low={low} must be below high={high}: {hint}")
    # Kernels guess the nearest edge in float32 and settle the bin by one comparison with that edge. The guess is
    # right if rounding moves no edge, and no value, by half a bin: two float32 steps a bin leave a wide margin.
    width = (high32 - low32) / bins
    step = float(np.spacing(np.float32(max(abs(low32), abs(high32)))))
    if width < max(2 * step, _FLOAT32_SMALLEST_NORMAL):
        most = math.floor((high32 - low32) / max(2 * step, _FLOAT32_SMALLEST_NORMAL))
        move = f"use at most {most} bins or a wider range" if most else "choose a wider range"
        raise ValueError(f"{bins} bins between low={low} and high={high} are narrower than two float32 steps: {move}")


def cell_edges(kind: int, bins: int, low: float, high: float) -> np.ndarray:
    """The edges of the bins, in ascending order.

    Linear edges are `low + i * ((high - low) / bins)` in float64, then rounded to float32, the last one being `high`:
    what `numpy.linspace(low, high, bins + 1).astype(float32)` gives for float32 `low` and `high`.

    Exponential edges stop at 2**128, the end of float32: float64 values beyond it are in the outermost cells. The
    outermost patterns (Inf and NaN) hold no finite value and are left out.

    Args:
        kind: EXPONENTIAL, LINEAR or INTEGER.
        bins: Number of bins as configured.
        low: Lower end of a linear binning.
        high: Upper end of a linear binning.

    Returns:
        float64 [n + 1], strictly increasing, where n is the number of cells that `sorted_cells` gives.

    Raises:
        ValueError: See `validate`.
    """
    validate(kind, bins, low, high)
    if kind == INTEGER:
        return np.arange(bins + 1, dtype=np.float64)
    if kind == LINEAR:
        return linear_edges(bins, low, high).astype(np.float64)
    # The float64 pattern with the same sign, exponent (bias 1023 instead of 127) and leading mantissa bits. Cells of
    # exponent 0 are float32's denormals: they divide [0, 2**-126) evenly.
    k = mantissa_bits(bins)
    index = np.arange(1, (255 << k) + 1)
    normal = ((index + (896 << k)) << (52 - k)).view(np.float64)
    positive = np.where(index < 1 << k, index * 2.0 ** (-126 - k), normal)
    return np.concatenate([-positive[::-1], positive])


def linear_edges(bins: int, low: float, high: float) -> np.ndarray:
    """The edges of a linear binning: float32 [bins + 1]. See `cell_edges`."""
    low, high = round_to_float32(low), round_to_float32(high)
    edges = low + np.arange(bins + 1, dtype=np.float64) * linear_width(bins, low, high)
    edges[-1] = high
    return edges.astype(np.float32)


def linear_width(bins: int, low: float, high: float) -> float:
    """The width of a linear bin, in float64."""
    return (round_to_float32(high) - round_to_float32(low)) / bins


def sorted_cells(cells: np.ndarray, kind: int, bins: int) -> SortedCells:
    """The cells of histogram rows in ascending order of value, aligned with `cell_edges`.

    Exponential cells are stored by float32 pattern: positive values first, then negative ones by magnitude. They come
    out as the negative cells reversed, ONE bin for the two cells next to zero (they hold zeros of both signs and
    magnitudes below 2**(-126 - K)), and the positive cells: 2 * 255 * 2**K - 1 bins.

    Args:
        cells: int64 [..., CELLS], the columns of a row of counts after its header.
        kind: EXPONENTIAL, LINEAR or INTEGER.
        bins: Number of bins as configured.
    """
    if kind != EXPONENTIAL:
        return SortedCells(cells[..., 1 : bins + 1], cells[..., 0], cells[..., bins + 1])
    half, finite = bins // 2, 255 << mantissa_bits(bins)
    negative = cells[..., half + 1 : half + finite][..., ::-1]
    centre = cells[..., :1] + cells[..., half : half + 1]
    none = np.zeros_like(cells[..., 0])
    return SortedCells(np.concatenate([negative, centre, cells[..., 1:finite]], axis=-1), none, none)
