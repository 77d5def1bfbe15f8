"""Histogram semantics, end to end: from a call on a run to the histogram a backend is handed."""

import math

import numpy as np
import pytest
import torch

from d9d_tracker import (
    ExponentialBinning,
    Histogram,
    IntegerBinning,
    LinearBinning,
    TrackerTypeError,
    TrackerValueError,
)


def numpy_counts(values: np.ndarray, edges: np.ndarray, high: float | None) -> np.ndarray:
    """Count with numpy, by the documented rule for a value that lies on an edge."""
    if high is not None:
        # Linear: a value equal to `high` is in the last regular bin, also when there are values above.
        values = np.where(values == np.float32(high), np.nextafter(np.float32(high), -np.inf), values)
        return np.histogram(values, edges)[0]
    # Exponential: bins are closed on the side of zero, on both signs.
    index = np.where(
        values >= 0, np.searchsorted(edges, values, side="right"), np.searchsorted(edges, values, side="left")
    )
    return np.bincount(np.clip(index - 1, 0, len(edges) - 2), minlength=len(edges) - 1)


def check(histogram: Histogram, values: torch.Tensor, high: float | None = None) -> None:
    flat = values.detach().to(torch.float64).numpy().reshape(-1)
    finite = flat[np.isfinite(flat)]
    assert len(histogram.edges) == len(histogram.counts) + 1
    assert histogram.counts.dtype == np.int64
    assert histogram.count == finite.size
    assert (histogram.nan, histogram.posinf, histogram.neginf, histogram.zeros) == (
        np.isnan(flat).sum(),
        (flat == math.inf).sum(),
        (flat == -math.inf).sum(),
        (flat == 0).sum(),
    )
    if not finite.size:
        assert math.isnan(histogram.min)
        assert math.isnan(histogram.max)
        return
    assert (histogram.min, histogram.max) == (finite.min(), finite.max())
    assert histogram.sum == pytest.approx(math.fsum(finite), rel=1e-12, abs=1e-12 * np.abs(finite).sum())
    with np.errstate(over="ignore"):
        assert histogram.sum_squares == pytest.approx(math.fsum(finite**2), rel=1e-12)
    assert (np.diff(histogram.edges) > 0).all()
    assert histogram.counts[0] > 0
    assert histogram.counts[-1] > 0
    assert np.array_equal(histogram.counts, numpy_counts(finite, histogram.edges, high))


def population(name: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(997, generator=generator)
    mixed = normal.clone()
    mixed[::7], mixed[1::11], mixed[2::13], mixed[3::17] = math.nan, math.inf, -math.inf, 0.0
    return {
        "normal": normal,
        "wide": normal * torch.exp(torch.randn(997, generator=generator) * 20),
        "constant": torch.full((300,), 0.7),
        "negative constant": torch.full((300,), -4.0),
        "powers of two": torch.tensor([-4.0, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 4.0]),
        "zeros": torch.tensor([0.0, -0.0, 0.0]),
        "denormals": torch.tensor([1e-40, -1e-41, 1e-45, 0.0]),
        "all NaN": torch.full((5,), math.nan),
        "mixed": mixed,
        "empty": torch.empty(0),
        "one element": torch.tensor([3.25]),
        "scalar": torch.tensor(-7.0),
        "transposed": normal[:992].reshape(31, 32).T,
        "strided": normal[::3],
        "expanded": torch.tensor([1.5, -2.5]).expand(4, 2),
        "half": normal.half(),
        "bfloat16": normal.bfloat16(),
        "double": normal.double() * 1e-3,
        "huge doubles": torch.tensor([1e300, -1e300, 1.0], dtype=torch.float64),
        "int64": torch.arange(-50, 50),
        "int8": torch.arange(-50, 50, dtype=torch.int8),
        "uint8": torch.arange(0, 200, dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
    }[name]


POPULATIONS = [
    "normal", "wide", "constant", "negative constant", "powers of two", "zeros", "denormals", "all NaN", "mixed",
    "empty", "one element", "scalar", "transposed", "strided", "expanded", "half", "bfloat16", "double",
    "huge doubles", "int64", "int8", "uint8", "bool",
]  # fmt: skip


@pytest.mark.parametrize("mantissa_bits", [0, 2])
@pytest.mark.parametrize("name", POPULATIONS)
def test_exponential_counts_equal_numpys_on_the_reported_edges(recorded, name, mantissa_bits):
    tracker = recorded(binning=ExponentialBinning(mantissa_bits=mantissa_bits))
    values = population(name)
    with tracker.open() as run:
        run.set_step(3)
        run.bins("values", values)
    assert list(tracker.run.histograms("values")) == [3]
    check(tracker.run.histograms("values")[3], values)


@pytest.mark.parametrize(
    "binning", [LinearBinning(low=-1.0, high=2.0, bins=30), LinearBinning(low=0, high=0.1, bins=7)]
)
@pytest.mark.parametrize("name", POPULATIONS)
def test_linear_counts_equal_numpys_on_the_reported_edges(recorded, name, binning):
    tracker = recorded()
    values = population(name)
    with tracker.open() as run:
        run.bins("values", values, binning=binning)
    check(tracker.run.histograms("values")[0], values, binning.high)


def test_integer_bins_count_each_integer(recorded):
    tracker = recorded()
    experts = torch.tensor([0, 3, 3, 3, 7, 9, -1, -2, 7])
    with tracker.open() as run:
        run.bins("load", experts, binning=IntegerBinning(bins=8))
    histogram = tracker.run.histograms("load")[0]
    assert histogram.edges.tolist() == [-2, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert histogram.counts.tolist() == [2, 1, 0, 0, 3, 0, 0, 0, 2, 1]


def test_a_histogram_holds_the_values_of_its_window_at_the_last_step_that_contributed(recorded):
    tracker = recorded(sync_every=4)
    batches = {
        step: torch.randn(50, generator=torch.Generator().manual_seed(step)) for step in range(11) if step % 4 != 3
    }
    with tracker.open() as run:
        for step in range(11):
            run.set_step(step)
            if step in batches:
                run.bins("values", batches[step][:20])
                run.bins("values", batches[step][20:])
    histograms = tracker.run.histograms("values")
    assert list(histograms) == [2, 6, 10]
    for last, steps in ((2, (0, 1, 2)), (6, (4, 5, 6)), (10, (8, 9, 10))):
        check(histograms[last], torch.cat([batches[step] for step in steps]))


def test_cadence_counts_on_divisible_steps_only(recorded):
    tracker = recorded(sync_every=8, bins_every=3)
    with tracker.open() as run:
        for step in range(16):
            run.set_step(step)
            run.bins("every 4", torch.tensor([float(step)]), every=4)
            run.bins("every 3", torch.tensor([float(step)]))
    assert {s: h.count for s, h in tracker.run.histograms("every 4").items()} == {4: 2, 12: 2}
    assert {s: h.sum for s, h in tracker.run.histograms("every 3").items()} == {6: 9.0, 15: 9.0 + 12.0 + 15.0}


def test_contexts_have_histograms_of_their_own(recorded):
    tracker = recorded()
    with tracker.open() as run:
        run.set_context({"stage": "train"})
        run.bins("values", torch.ones(3))
        run.bins("values", torch.zeros(2), {"stage": "eval"})
    assert tracker.run.histograms("values", stage="train")[0].count == 3
    assert tracker.run.histograms("values", stage="eval")[0].zeros == 2


def test_values_stay_as_they_were(recorded):
    tracker = recorded()
    values = torch.tensor([1.0, -0.0, math.nan], requires_grad=True)
    before = values.detach().clone()
    with tracker.open() as run:
        run.bins("values", values * 1)
        run.bins("values", values)
    assert torch.equal(values.detach().view(torch.int32), before.view(torch.int32))


@pytest.mark.parametrize(
    ("values", "arguments", "error", "words"),
    [
        ([1.0], {}, TrackerTypeError, ("'h'", "list")),
        (torch.ones(2, dtype=torch.complex64), {}, TrackerTypeError, ("'h'", "complex64")),
        (torch.ones(2).to_sparse(), {}, TrackerTypeError, ("'h'", "sparse")),
        (torch.ones(2, device="meta"), {}, TrackerValueError, ("'h'", "meta")),
        (torch.ones(2), {"every": 0}, TrackerValueError, ("'h'", "every=0")),
        (torch.ones(2), {"every": 1.5}, TrackerValueError, ("'h'", "every=1.5")),
    ],
)
def test_bad_populations_are_refused_and_leave_nothing(recorded, values, arguments, error, words):
    tracker = recorded()
    with tracker.open() as run, pytest.raises(error) as caught:
        run.bins("h", values, **arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert tracker.run.records == []


def test_a_series_has_one_binning(recorded):
    tracker = recorded()
    with tracker.open() as run:
        run.bins("h", torch.ones(1))
        with pytest.raises(TrackerValueError, match=r"'h'.*ExponentialBinning.*IntegerBinning"):
            run.bins("h", torch.ones(1), binning=IntegerBinning(bins=3))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"low": 1.0, "high": 1.0, "bins": 4}, "low"),
        ({"low": 2.0, "high": 1.0, "bins": 4}, "swap"),
        ({"low": math.nan, "high": 1.0, "bins": 4}, "finite"),
        ({"low": 0.0, "high": math.inf, "bins": 4}, "finite"),
        ({"low": 0.0, "high": 1.0, "bins": 0}, "greater than 0"),
        ({"low": 0.0, "high": 1.0, "bins": 2047}, "2046"),
        ({"low": 1.0, "high": 1.000001, "bins": 2000}, "bins"),
    ],
)
def test_senseless_binnings_are_refused_at_config_time(arguments, words):
    with pytest.raises(ValueError, match=words):
        LinearBinning(**arguments)


def finished(counts, edges, **fields) -> Histogram:
    counts = np.array(counts)
    middle = (np.array(edges[:-1]) + np.array(edges[1:])) / 2
    known = {"zeros": 0, "nan": 0, "posinf": 0, "neginf": 0, **fields}
    moments = {"sum": float(counts @ middle), "sum_squares": float(counts @ middle**2)}
    return Histogram(np.array(edges, float), counts, **moments, min=float(edges[0]), max=float(edges[-1]), **known)


def test_a_finished_histogram_merges_with_the_values_of_its_window(recorded):
    tracker = recorded(sync_every=2)
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(100, generator=generator) for _ in range(3)]
    with tracker.open() as run:
        run.histogram("grad", Histogram.from_values(parts[0]), {"by": "host"})
        run.bins("grad", parts[1], {"by": "host"})
        run.set_step(1)
        run.histogram("grad", Histogram.from_values(parts[2]), {"by": "host"})
        run.histogram("empty", Histogram.from_values(torch.tensor([math.nan])))
    found = tracker.run.histograms("grad", by="host")
    expected = Histogram.from_values(torch.cat(parts))
    assert list(found) == [1]
    assert found[1].counts.tolist() == expected.counts.tolist()
    assert found[1].edges.tolist() == expected.edges.tolist()
    assert (found[1].min, found[1].max, found[1].zeros) == (expected.min, expected.max, expected.zeros)
    assert found[1].sum == pytest.approx(expected.sum)
    assert tracker.run.histograms("empty")[1].nan == 1
    assert {record.name for record in tracker.run.records} == {"grad", "empty"}, "no summary beside it"


@pytest.mark.parametrize(
    ("counts", "edges"),
    [
        ([3, 0, 4], [0.0, 0.1, 0.2, 0.3]),
        ([1, 2], [0, 1, 2]),
        ([5], [-1.0, 1.0]),
        ([1] * 7, np.linspace(-3, 4, 8)),
        ([1, 2], [0.5, 0.51, 0.52]),
        ([0, 1, 0], [7, 8, 9, 10]),
    ],
)
def test_bins_of_others_are_kept(recorded, counts, edges):
    tracker = recorded()
    with tracker.open() as run:
        for _ in range(2):
            run.histogram("theirs", finished(counts, edges, nan=1))
    histogram = tracker.run.histograms("theirs")[0]
    used = np.flatnonzero(counts)
    assert histogram.counts.tolist() == [2 * count for count in counts[used[0] : used[-1] + 1]]
    np.testing.assert_allclose(histogram.edges, edges[used[0] : used[-1] + 2], rtol=1e-6)
    assert (histogram.nan, histogram.min, histogram.max) == (2, edges[0], edges[-1])


def test_a_histogram_that_merges_with_nothing_is_refused(recorded):
    tracker = recorded()
    with tracker.open() as run:
        with pytest.raises(TrackerValueError, match=r"'a': bins of unequal widths .* run\.backend that calls"):
            run.histogram("a", finished([1, 2], [0.3, 0.5, 9.0]))
        with pytest.raises(TrackerValueError, match="'a': its edges are not those of the binning"):
            run.histogram("a", finished([1, 2], [0.3, 0.5, 9.0]), binning=LinearBinning(low=0, high=1, bins=3))
        with pytest.raises(TrackerTypeError, match="'a': pass a Histogram, not list"):
            run.histogram("a", [1, 2])
        run.histogram("a", finished([1, 2], [0, 1, 2]))
        with pytest.raises(TrackerValueError, match="'a' was logged with binning=IntegerBinning"):
            run.histogram("a", finished([1, 2, 3], [0, 1, 2, 3]))
    assert len(tracker.run.records) == 1


def test_the_cadence_of_a_run_is_its_own(recorded):
    """Also before its first set_step: on the device, the step of the run before is forgotten."""
    tracker = recorded()
    with tracker.open("first") as run:
        run.set_step(7)
    with tracker.open("second") as run:
        run.bins("values", torch.ones(3), every=2)
    assert list(tracker.run.histograms("values")) == [0]
