"""Histogram against numpy on the edges that it reports."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from d9d_tracker import AccumulatorConfig, JsonlTrackerConfig, RunConfig, read, tracker_from_config
from d9d_tracker.config import Binning, ExponentialBinning, IntegerBinning, LinearBinning
from d9d_tracker.points import Points
from d9d_tracker.record import Histogram, Record
from d9d_tracker_kernels.binning import CELLS, HEADER

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


def expected_counts(values: np.ndarray, edges: np.ndarray, binning: Binning) -> np.ndarray:
    """What numpy counts; exponential bins are closed on the side of zero, so negative values are mirrored."""
    if isinstance(binning, LinearBinning):
        # The last configured bin is closed, also when a bin of larger values follows it.
        high = np.float64(np.float32(binning.high))
        return np.histogram(
            np.where((values == high) & (edges[-1] > high), np.nextafter(high, -math.inf), values), edges
        )[0]
    if isinstance(binning, IntegerBinning):
        return np.histogram(values, edges)[0]
    above = np.histogram(values[values >= 0], edges)[0]
    below = np.histogram(-values[values < 0], -edges[::-1])[0][::-1]
    return above + below


def check(values: torch.Tensor, binning: Binning | None = None) -> Histogram:
    histogram = Histogram.from_values(values, binning)
    flat = values.reshape(-1).to(torch.float64).numpy()
    finite = flat[np.isfinite(flat)]
    assert histogram.counts.dtype == np.int64
    assert histogram.edges.dtype == np.float64
    assert len(histogram.edges) == len(histogram.counts) + 1
    assert np.all(np.diff(histogram.edges) > 0)
    assert histogram.count == finite.size == histogram.counts.sum()
    assert histogram.zeros == np.count_nonzero(finite == 0)
    assert histogram.nan == np.isnan(flat).sum()
    assert histogram.posinf == np.isposinf(flat).sum()
    assert histogram.neginf == np.isneginf(flat).sum()
    if finite.size:
        counts = expected_counts(finite, histogram.edges, binning or ExponentialBinning())
        np.testing.assert_array_equal(histogram.counts, counts)
        assert histogram.counts[0] > 0
        assert histogram.counts[-1] > 0
        assert histogram.min == finite.min()
        assert histogram.max == finite.max()
        assert histogram.sum == pytest.approx(finite.sum(), rel=1e-12, abs=1e-12 * np.abs(finite).sum())
        assert histogram.sum_squares == pytest.approx(np.square(finite).sum(), rel=1e-12)
        assert histogram.mean == pytest.approx(finite.mean(), rel=1e-12, abs=1e-12 * np.abs(finite).max())
        # The variance is a difference of two numbers of the size of the mean square.
        assert histogram.std**2 == pytest.approx(finite.var(), rel=1e-9, abs=1e-12 * np.square(finite).mean())
    else:
        assert histogram.counts.size == 0
        np.testing.assert_array_equal(histogram.edges, [0.0])
        assert all(math.isnan(value) for value in (histogram.min, histogram.max, histogram.mean, histogram.std))
    return histogram


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bits", [0, 1, 2])
def test_random_floats(generator: torch.Generator, dtype: torch.dtype, bits: int) -> None:
    values = torch.randn(5000, generator=generator, dtype=torch.float64) * 10 ** torch.randint(
        -4, 4, (5000,), generator=generator
    )
    check(values.to(dtype), ExponentialBinning(mantissa_bits=bits))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers(generator: torch.Generator, dtype: torch.dtype) -> None:
    values = torch.randint(0, 100, (1000,), generator=generator).to(dtype)
    check(values)
    check(-values)
    check(values, IntegerBinning(bins=50))
    check(torch.tensor([0, 3, 50], dtype=dtype), IntegerBinning(bins=50))
    check(values, LinearBinning(low=10, high=90, bins=7))


@pytest.mark.parametrize("values", [[8], [7, 8], [8, 9], [-3, 9], [0]])
def test_integers_around_the_end_of_the_bins(values: list[int]) -> None:
    check(torch.tensor(values), IntegerBinning(bins=8))


def test_squares_beyond_float64_have_no_deviation() -> None:
    assert math.isnan(Histogram.from_values(torch.tensor([1e200, 1.0], dtype=torch.float64)).std)


@pytest.mark.parametrize("dtype", FLOATS)
def test_values_on_edges_and_beside_them(dtype: torch.dtype) -> None:
    edges = torch.tensor([0.25, 0.3125, 0.5, 1.0, 1.25, 1.5, 1.75, 2.0, 96.0], dtype=dtype)
    beside = [torch.nextafter(edges.float(), torch.tensor(limit)).to(dtype) for limit in (math.inf, -math.inf)]
    if dtype == torch.float64:
        beside += [torch.nextafter(edges, torch.tensor(limit, dtype=dtype)) for limit in (math.inf, -math.inf)]
    values = torch.cat([edges, *beside])
    histogram = check(torch.cat([values, -values, torch.tensor([0.0, -0.0], dtype=dtype)]))
    assert histogram.zeros == 2


@pytest.mark.parametrize("binning", [LinearBinning(low=-1, high=1, bins=20), LinearBinning(low=0.1, high=0.7, bins=3)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_linear_edges_inside_and_outside(
    generator: torch.Generator, binning: LinearBinning, dtype: torch.dtype
) -> None:
    low, high = (np.float32(bound).item() for bound in (binning.low, binning.high))
    edges = torch.linspace(low, high, binning.bins + 1, dtype=torch.float64)
    values = torch.cat([torch.randn(1000, generator=generator, dtype=torch.float64), edges, torch.tensor([-9.0, 9.0])])
    check(values.to(dtype), binning)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(torch.full((100,), 0.3), id="constant"),
        pytest.param(torch.full((100,), -0.3), id="negative constant"),
        pytest.param(torch.zeros(100), id="zeros"),
        pytest.param(torch.tensor([-0.0, 0.0]), id="signed zeros"),
        pytest.param(torch.full((7,), math.nan), id="all NaN"),
        pytest.param(torch.tensor([math.inf, -math.inf, math.inf]), id="all infinite"),
        pytest.param(torch.tensor([1.0, math.nan, -2.0, math.inf, -math.inf, 0.0]), id="mixed"),
        pytest.param(torch.empty(0), id="empty"),
        pytest.param(torch.empty(0, dtype=torch.int64), id="empty integers"),
        pytest.param(torch.tensor(5.0), id="zero-dimensional"),
        pytest.param(torch.tensor([-5.0]), id="one element"),
        pytest.param(torch.tensor([True, False, True]), id="booleans"),
        pytest.param(torch.randn(20, 30).t(), id="transposed"),
        pytest.param(torch.randn(20, 30)[::3, 1::2], id="strided"),
        pytest.param(torch.randn(1, 30).expand(10, 30), id="expanded"),
        pytest.param(torch.randn(20).requires_grad_().detach(), id="gradient"),
        pytest.param(torch.tensor([1e-45, -1e-45, 1e-39, 2.0**-126, 2.0**-128]), id="denormal"),
        pytest.param(torch.tensor([3.4028234e38, -3.4028234e38]), id="ends of float32"),
    ],
)
@pytest.mark.parametrize("binning", [None, LinearBinning(low=-1, high=1, bins=8)])
def test_shapes_and_extremes(values: torch.Tensor, binning: Binning | None) -> None:
    check(values, binning)


def test_float64_beyond_float32_is_in_the_outermost_bins() -> None:
    histogram = Histogram.from_values(torch.tensor([1e300, -1e200, 1.0, 1e-300], dtype=torch.float64))
    assert histogram.count == 4
    assert (histogram.min, histogram.max) == (-1e200, 1e300)
    assert (histogram.edges[0], histogram.edges[-1]) == (-1e200, 1e300)
    assert (histogram.counts[0], histogram.counts[-1]) == (1, 1)


def test_values_under_autograd_are_not_kept() -> None:
    values = torch.randn(10, requires_grad=True)
    assert Histogram.from_values(values).count == 10


@pytest.mark.parametrize("values", [torch.ones(2, dtype=torch.complex64), torch.ones(2, 2).to_sparse()])
def test_what_cannot_be_binned_is_refused(values: torch.Tensor) -> None:
    with pytest.raises(TypeError):
        Histogram.from_values(values)


@pytest.mark.parametrize("q", [0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0])
def test_quantile_lies_in_the_bin_of_the_true_one(generator: torch.Generator, q: float) -> None:
    values = torch.randn(9999, generator=generator)
    histogram = Histogram.from_values(values)
    true = np.quantile(values.double().numpy(), q, method="inverted_cdf")
    bin_of_true = np.clip(np.searchsorted(histogram.edges, true, side="right") - 1, 0, len(histogram.counts) - 1)
    low, high = histogram.edges[bin_of_true : bin_of_true + 2]
    assert max(low, histogram.min) <= histogram.quantile(q) <= min(high, histogram.max)


def test_quantiles_of_one_value_are_that_value() -> None:
    histogram = Histogram.from_values(torch.full((10,), 0.3))
    assert {histogram.quantile(q) for q in (0.0, 0.3, 1.0)} == {histogram.min}


def test_cumulative_at_edges_is_the_running_total(generator: torch.Generator) -> None:
    histogram = Histogram.from_values(torch.randn(1000, generator=generator))
    running = np.concatenate(([0], np.cumsum(histogram.counts)))
    np.testing.assert_array_equal(histogram.cumulative_at(histogram.edges)[1:-1], running[1:-1])
    ends = np.array([histogram.min - 1, histogram.min, histogram.max, histogram.max + 1])
    np.testing.assert_array_equal(histogram.cumulative_at(ends), [0, 0, 1000, 1000])


def test_summary_names_everything() -> None:
    summary = Histogram.from_values(torch.tensor([1.0, 3.0, 0.0, math.nan, math.inf, -math.inf])).summary()
    assert list(summary)[:7] == ["p01", "p05", "p25", "p50", "p75", "p95", "p99"]
    rest = {key: summary[key] for key in list(summary)[7:]}
    assert rest == pytest.approx(
        {
            "mean": 4 / 3,
            "std": math.sqrt(14) / 3,
            "rms": math.sqrt(10 / 3),
            "norm": math.sqrt(10),
            "abs_max": 3,
            "min": 0,
        }
        | {"max": 3, "count": 3, "zeros": 1, "nan": 1, "inf": 2}
    )


def test_summary_without_finite_values_is_counts_alone() -> None:
    summary = Histogram.from_values(torch.tensor([math.nan, math.inf])).summary()
    assert summary == {"count": 0, "zeros": 0, "nan": 1, "inf": 1}


def test_the_spread_of_values_far_from_zero(generator: torch.Generator) -> None:
    values = (1 + 1e-4 * torch.randn(50_000, dtype=torch.float64, generator=generator)).float()
    assert Histogram.from_values(values).std == pytest.approx(values.double().std(correction=0).item(), rel=1e-6)
    assert Histogram.from_values(torch.full((9999,), 0.7)).std == 0


def test_the_largest_magnitude_may_be_negative() -> None:
    assert Histogram.from_values(torch.tensor([1.0, -3.0])).abs_max == 3


def test_a_histogram_holds_its_own_bytes_and_shares_its_edges():
    window = np.zeros((3, HEADER + CELLS), dtype=np.int64)
    binning = LinearBinning(low=0, high=1, bins=16)
    window[1, HEADER + 4] = 5
    moments = np.array([1.0, 1.0, 0.2, 0.3])
    one, other = (Histogram.from_cells(window[1], moments, binning) for _ in range(2))
    assert one.counts.base is None
    assert one.counts.tolist() == [5]
    assert one.edges.base is other.edges.base
    assert not one.edges.flags.writeable


@pytest.mark.parametrize(
    "binning",
    [
        ExponentialBinning(),
        ExponentialBinning(mantissa_bits=0),
        LinearBinning(low=-1.3, high=2.1, bins=700),
        IntegerBinning(bins=5),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "values",
    [
        torch.randn(1000, generator=torch.Generator().manual_seed(0)),
        torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e200,
        torch.tensor([]),
        torch.tensor([math.nan, 1.0, 0.0, -0.0, math.inf, -math.inf, 1e-45]),
        torch.arange(8),
    ],
    ids=["normal", "beyond float32", "none", "special", "integers"],
)
def test_a_row_is_read_as_it_was_written(values: torch.Tensor, binning: Binning) -> None:
    histogram = Histogram.from_values(values, binning)
    counts, moments = histogram.to_cells(binning)
    again = Histogram.from_cells(counts, moments, binning)
    for one, other in zip(dataclasses.astuple(histogram), dataclasses.astuple(again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_bins_that_overlap_those_of_a_row_are_refused() -> None:
    histogram = Histogram.from_values(torch.arange(10.0), LinearBinning(low=0, high=10, bins=10))
    with pytest.raises(ValueError, match="not those of the binning"):
        histogram.to_cells(LinearBinning(low=0, high=10, bins=7))
    counts, _ = histogram.to_cells(LinearBinning(low=0, high=10, bins=5))  # every two lie within one
    assert sorted(counts[HEADER:])[-5:] == [2] * 5


@pytest.mark.parametrize("width", [np.float16, np.float32, np.float64])
def test_what_numpy_has_counted_travels_as_it_is(width: type, tmp_path: Path) -> None:
    values = np.linspace(-1, 3, 9).astype(width)
    counts, edges = np.histogram(values, bins=4)
    numbers = values.sum(), (values**2).sum(), values.min(), values.max(), (values == 0).sum(), *np.zeros(3, np.int32)
    histogram = Histogram(edges.astype(width), counts.astype(np.int32), *numbers)
    accumulator = AccumulatorConfig(device="cpu", backlog_dir=tmp_path / "backlog")
    tracker = tracker_from_config(JsonlTrackerConfig(path=tmp_path / "runs", accumulator=accumulator))
    with tracker.open(RunConfig(name="x")) as run:
        run.set_step(1)
        run.log_at(0, {"own": histogram})
        state = tracker.state_dict()
    tracker.load_state_dict(state)
    with tracker.open(RunConfig(name="x")):
        pass
    (stored,) = read(tmp_path / "runs")[0].histograms("own").values
    (sent,) = Points.load(Points.of([Record("own", 0, {}, histogram)]).dump())
    for one in (stored, sent.value):
        assert one.edges.tolist() == edges.tolist() == [-1, 0, 1, 2, 3]
        assert one.counts.tolist() == [2, 2, 2, 3]
        assert (one.sum, one.min, one.max, one.zeros) == (9, -1, 3, 1)


def test_counts_without_the_edges_of_all_are_refused() -> None:
    with pytest.raises(ValueError, match="2 counts has one edge more, not 2"):
        Histogram(np.zeros(2), np.ones(2), 0, 0, 0, 0, 0, 0, 0, 0)
