"""Equal bins keep the total, and as much of the shape as the bins they come from."""

import numpy as np
import pytest
import torch

from d9d_tracker.provider.rebin import rebin
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
