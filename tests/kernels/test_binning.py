import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d9d_tracker_kernels.binning import CELLS, EXPONENTIAL, INTEGER, LINEAR, cell_edges, sorted_cells, validate


@pytest.mark.parametrize("bins", [512, 1024, 2048])
def test_exponential_edges_are_the_float32_values_where_the_top_bits_change(bins):
    shift = 32 - int(math.log2(bins))
    patterns = (np.arange(1, (255 << 23 >> shift) + 1, dtype=np.int64) << shift).astype(np.uint32)
    positive = patterns.view(np.float32).astype(np.float64)
    positive[-1] = 2.0**128  # the pattern after the largest finite one is Inf's
    edges = cell_edges(EXPONENTIAL, bins, 0.0, 0.0)
    assert edges.tolist() == [*-positive[::-1], *positive]
    assert (np.diff(edges) > 0).all()


@pytest.mark.parametrize("bins", [512, 1024, 2048])
def test_exponential_cells_are_sorted_with_one_bin_around_zero(bins):
    cells = np.zeros((2, CELLS), dtype=np.int64)
    one = np.float32(1.0).view(np.uint32) >> (32 - int(math.log2(bins)))
    for cell, number in ((0, 3), (bins // 2, 4), (one, 5), (bins // 2 + one, 6)):
        cells[1, cell] = number
    result = sorted_cells(cells, EXPONENTIAL, bins)
    edges = cell_edges(EXPONENTIAL, bins, 0.0, 0.0)
    assert result.cells.shape == (2, len(edges) - 1)
    assert result.cells[1].sum() == 18
    assert result.under.tolist() == result.over.tolist() == [0, 0]
    centre = len(edges) // 2 - 1
    assert result.cells[1, centre] == 7
    assert edges[centre] == -edges[centre + 1]
    assert result.cells[1, edges.tolist().index(1.0)] == 5
    assert result.cells[1, edges.tolist().index(-1.0) - 1] == 6


def test_linear_cells_leave_under_and_over_apart():
    cells = np.arange(CELLS)
    result = sorted_cells(cells, LINEAR, 10)
    assert result.cells.tolist() == list(range(1, 11))
    assert (result.under, result.over) == (0, 11)


@given(
    st.floats(-1e6, 1e6, width=32),
    st.floats(2.0**-10, 1e6, width=32),
    st.integers(1, CELLS - 2),
)
def test_linear_edges_are_those_of_numpy_linspace(low, width, bins):
    high = float(np.float32(low + width))
    try:
        validate(LINEAR, bins, low, high)
    except ValueError:
        return
    edges = cell_edges(LINEAR, bins, low, high)
    assert edges.tolist() == np.linspace(low, high, bins + 1).astype(np.float32).tolist()
    assert (np.diff(edges) > 0).all()


def test_linear_bounds_are_rounded_to_float32():
    edges = cell_edges(LINEAR, 10, 0.1, 0.7)
    assert edges[0] == np.float32(0.1)
    assert edges[-1] == np.float32(0.7)


def test_integer_edges():
    assert cell_edges(INTEGER, 4, 0.0, 0.0).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("kind", "bins", "low", "high", "message"),
    [
        (EXPONENTIAL, 256, 0.0, 0.0, "512, 1024 or 2048 bins, not 256"),
        (LINEAR, 0, 0.0, 1.0, "bins=0: choose between 1 and 2046"),
        (LINEAR, 2047, 0.0, 1.0, "bins=2047"),
        (INTEGER, -1, 0.0, 0.0, "bins=-1"),
        (LINEAR, 8, 2.0, 1.0, "low=2.0 must be below high=1.0: swap them"),
        (LINEAR, 8, 1.0, 1.0, "as float32 they are equal"),
        (LINEAR, 8, 1.0, 1.0 + 1e-12, "as float32 they are equal"),
        (LINEAR, 8, math.nan, 1.0, "must be finite"),
        (LINEAR, 8, 0.0, math.inf, "must be finite"),
        (LINEAR, 8, -3e38, 3e38, "wider than float32"),
        (LINEAR, 8, 0.0, 1e39, "wider than float32"),
        (LINEAR, 64, 1.0, 1.0 + 2.0**-18, "use at most 16 bins"),
        (LINEAR, 64, 1.0, 1.0 + 2.0**-23, "choose a wider range"),
        (LINEAR, 64, 0.0, 1e-38, "narrower than two float32 steps"),
        (7, 64, 0.0, 1.0, "unknown kind of binning 7"),
    ],
)
def test_senseless_binnings_are_refused(kind, bins, low, high, message):
    with pytest.raises(ValueError, match=message):
        validate(kind, bins, low, high)


def test_the_advice_of_the_refusal_is_accepted():
    validate(LINEAR, 16, 1.0, 1.0 + 2.0**-18)
