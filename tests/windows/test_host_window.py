"""Merging windows: equal to one window that saw all the values."""

import math
import random

import numpy as np
import pytest
from window_of import same, window_of

from d9d_tracker import IntegerBinning
from d9d_tracker.series.series import HistogramSeries, ScalarSeries
from d9d_tracker.windows import window_points
from d9d_tracker.windows.host_window import contradictions, empty_window, merge_windows
from d9d_tracker_kernels.binning import CALLS, LAST_STEP

REDUCTIONS = ["mean", "sum", "min", "max", "last"]


def random_values(seed: int, steps: range, names: list[str]) -> dict:
    """Values that sums hold exactly, so that no order of adding makes a difference."""
    source = random.Random(seed)
    return {
        step: {name: [source.randrange(-512, 512) / 8 for _ in range(source.randrange(1, 4))] for name in names}
        for step in steps
    }


def joined(*ranks: dict) -> dict:
    together: dict = {}
    for values in ranks:
        for step, series in values.items():
            for name, numbers in series.items():
                together.setdefault(step, {}).setdefault(name, []).extend(numbers)
    return together


def points(window) -> dict:
    return {
        (record.name, record.step): record.value
        for record in window_points.points(window)
        if isinstance(record.value, float)
    }


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_ranks_that_agree(reduce):
    ranks = [random_values(seed, range(10, 15), ["a", "b"]) for seed in range(2)]
    merged = merge_windows(*(window_of(values, values, reduce) for values in ranks))
    together = window_of(joined(*ranks), joined(*ranks), reduce)
    assert np.array_equal(merged.lanes, together.lanes)
    assert np.array_equal(merged.moments, together.moments)
    assert merged.counts[:, CALLS].tolist() == [10, 10]
    merged.counts[:, CALLS] = together.counts[:, CALLS]
    assert np.array_equal(merged.counts, together.counts)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_ranks_that_differ_in_series_order_and_steps(reduce):
    one = random_values(1, range(10, 13), ["a", "b"])
    other = random_values(2, range(11, 16), ["c", "b"])
    merged = merge_windows(window_of(one, one, reduce), window_of(other, other, reduce))
    assert merged.steps == [10, 11, 12, 13, 14, 15]
    assert [series.name for series in merged.scalars] == ["a", "b", "c"]
    assert points(merged) == points(window_of(joined(one, other), None, reduce))
    expected = window_of({}, joined(one, other))
    assert [series.name for series in merged.histograms] == [series.name for series in expected.histograms]
    assert np.array_equal(merged.counts[:, LAST_STEP:], expected.counts[:, LAST_STEP:])
    assert np.array_equal(merged.moments, expected.moments)


def test_merging_is_associative():
    windows = [
        window_of(*[random_values(seed, range(seed, seed + 4), list("abc"[: 1 + seed]))] * 2) for seed in range(3)
    ]
    left = merge_windows(merge_windows(windows[0], windows[1]), windows[2])
    right = merge_windows(windows[0], merge_windows(windows[1], windows[2]))
    assert same(left, right)


def test_a_window_without_values_changes_nothing():
    window = window_of(*[random_values(3, range(4), ["a", "b"])] * 2)
    nothing = empty_window(0, list(window.steps), list(window.times), list(window.scalars), list(window.histograms))
    assert same(merge_windows(window, nothing), window)
    assert same(merge_windows(nothing, window), window)
    assert same(merge_windows(window, empty_window(0, [], [], [], [])), window)
    assert same(merge_windows(empty_window(0, [], [], [], []), window), window)


def test_last_is_that_of_the_higher_rank_where_it_has_one():
    low = window_of({1: {"a": [1.0]}, 2: {"a": [2.0]}}, reduce="last")
    high = window_of({2: {"a": [5.0]}, 3: {"a": [math.nan]}}, reduce="last")
    merged = points(merge_windows(low, high))
    assert merged["a", 1] == 1.0
    assert merged["a", 2] == 5.0
    assert math.isnan(merged["a", 3])


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_nan_of_any_rank_is_seen(reduce):
    windows = [window_of({1: {"a": [1.0]}}, reduce=reduce), window_of({1: {"a": [math.nan]}}, reduce=reduce)]
    assert math.isnan(points(merge_windows(*windows))["a", 1])
    if reduce != "last":
        assert math.isnan(points(merge_windows(*reversed(windows)))["a", 1])


def test_counts_stay_integers_beyond_the_reach_of_a_float():
    windows = [window_of({}, {1: {"h": [1.0]}}) for _ in range(2)]
    windows[0].counts[0, windows[0].counts[0] == 1] = 2**53
    merged = merge_windows(*windows)
    assert merged.counts.dtype == np.int64
    assert merged.counts.max() == 2**53 + 1


def test_a_series_that_is_logged_differently_keeps_the_first_definition_and_is_named():
    low = window_of({1: {"a": [1.0], "b": [1.0]}}, reduce="mean")
    high = window_of({1: {"a": [5.0]}}, reduce="sum")
    assert points(merge_windows(low, high)) == {("a", 1): 1.0, ("b", 1): 1.0}
    (words,) = contradictions(low.scalars, high.scalars)
    assert "'a'" in words
    assert "reduce='mean'" in words
    assert "reduce='sum'" in words
    assert contradictions(low.scalars, [ScalarSeries("b", (), "mean")]) == []
    exponential = window_of({}, {1: {"h": [1.0]}}).histograms
    assert len(contradictions(exponential, [HistogramSeries("h", (), IntegerBinning(bins=3))])) == 1
