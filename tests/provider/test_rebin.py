"""Equal bins keep the total, and as much of the shape as the bins they come from."""

import numpy as np
import pytest
import torch

from d9d_tracker import IntegerBinning
from d9d_tracker.provider.rebin import coarsen, rebin
from d9d_tracker.record import Histogram


@pytest.mark.parametrize("size", [2, 3, 10, 1000, 100_000])
@pytest.mark.parametrize("bins", [2, 24, 64])
def test_total_and_range_are_exact(size: int, bins: int) -> None:
    histogram = Histogram.from_values(torch.randn(size) ** 3)
    counts, low, high = rebin(histogram, bins)
    assert counts.dtype == np.int64
    assert counts.shape == (bins,)
    assert counts.sum() == size
    assert counts.min() >= 0
    assert (low, high) == (histogram.min, histogram.max)
    edges = np.linspace(low, high, bins + 1)
    np.testing.assert_allclose(np.cumsum(counts), histogram.cumulative_at(edges[1:]), atol=0.5)


@pytest.mark.parametrize("value", [0.0, 3.0, -1e-8, 1e30])
def test_one_value_is_the_lower_edge_of_the_bin_in_the_middle(value: float) -> None:
    histogram = Histogram.from_values(torch.full((7,), value))
    counts, low, high = rebin(histogram, 64)
    assert counts[32] == counts.sum() == 7
    assert low < histogram.min < high
    assert np.linspace(low, high, 65)[32] == pytest.approx(histogram.min, rel=1e-12)


def test_no_value_has_no_range() -> None:
    with pytest.raises(ValueError, match="finite"):
        rebin(Histogram.from_values(torch.empty(0)), 64)


def test_a_range_wider_than_float64_is_rebinned() -> None:
    counts, low, high = rebin(Histogram.from_values(torch.tensor([-1e308, 0.0, 1e308], dtype=torch.float64)), 4)
    assert (counts.sum(), low, high) == (3, -1e308, 1e308)
    assert 1 <= counts[:2].sum() <= 2


@pytest.mark.parametrize("bins", [1, 2, 7, 64, 5000])
@pytest.mark.parametrize(
    "histogram",
    [
        Histogram.from_values(torch.randn(3000, generator=torch.Generator().manual_seed(0))),
        Histogram.from_values(torch.arange(8), IntegerBinning(bins=8)),
        Histogram.from_values(torch.tensor([-2.0, -1.0, 3.0])),
    ],
    ids=["normal", "integers to the end", "on edges"],
)
def test_coarser_bins_keep_what_lies_between_their_edges(histogram: Histogram, bins: int) -> None:
    counts, edges = coarsen(histogram, bins)
    assert len(counts) <= bins
    assert np.all(np.diff(edges) > 0)
    assert (edges[0], edges[-1]) == (histogram.min, histogram.max)
    at = [int(np.flatnonzero(histogram.edges == edge)[0]) for edge in edges[1:-1]]
    assert counts.tolist() == [part.sum() for part in np.split(histogram.counts, at)]


def test_empty_bins_take_no_room() -> None:
    histogram = Histogram.from_values(torch.tensor([-1e30, 1e-30, 2e-30, 1e30]))
    counts, edges = coarsen(histogram, 8)
    assert counts.tolist() == [1, 0, 1, 0, 1, 0, 1]
    assert len(edges) == 8
