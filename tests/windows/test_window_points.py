"""Sums of series, made when the windows of all ranks have met."""

import math

import numpy as np
import pytest

from d9d_tracker.series.series import ScalarSeries
from d9d_tracker.windows.host_window import HostWindow, empty_window, merge_windows
from d9d_tracker.windows.window_points import Tail, points, summed
from d9d_tracker_kernels.lanes import COUNT, MAX, SUM, WEIGHT


def part(name: str, *sums: tuple[str, int], reduce="mean", root=2.0) -> ScalarSeries:
    return ScalarSeries(name, (), reduce, root, sums=sums)


def window(values: dict[ScalarSeries, list[float | None]]) -> HostWindow:
    rows = len(next(iter(values.values())))
    found = empty_window(0, list(range(rows)), [0.0] * rows, list(values), [])
    for slot, (series, column) in enumerate(values.items()):
        for row, value in enumerate(column):
            if value is not None:
                found.lanes[row, MAX if series.reduce == "max" else SUM, slot] = value
                found.lanes[row, WEIGHT, slot] = found.lanes[row, COUNT, slot] = 1.0
    return found


def written(found: HostWindow) -> dict[tuple[str, int], float]:
    return {(record.name, record.step): record.value for record in points(found)}


def test_a_sum_is_of_the_parts_that_have_a_value():
    a, b = part("a", ("a", 1), ("all", 1)), part("b", ("all", 1))
    other = ScalarSeries("loss", (), "mean")
    found = written(window({a: [9.0, None, None], other: [5.0, None, 6.0], b: [16.0, 4.0, None]}))
    assert found == {("a", 0): 3.0, ("all", 0): 5.0, ("all", 1): 2.0, ("loss", 0): 5.0, ("loss", 2): 6.0}


def test_the_sum_of_largest_values_is_the_largest():
    a, b = (part(name, ("all", 1), reduce="max", root=1.0) for name in "ab")
    found = written(window({a: [3.0, math.nan], b: [7.0, 1.0]}))
    assert found == {("all", 0): 7.0, ("all", 1): pytest.approx(math.nan, nan_ok=True)}


def test_a_ratio_needs_both_sides():
    above, below = part("u", ("ratio", 1)), part("p", ("ratio", -1))
    found = written(window({above: [4.0, 4.0, 4.0], below: [16.0, None, 0.0]}))
    assert found == {("ratio", 0): 0.5, ("ratio", 2): math.inf}


def test_what_is_not_finite_stays_with_its_sums():
    a, b, c = part("a", ("x", 1)), part("b", ("x", 1)), part("c", ("y", 1))
    assert written(window({a: [math.inf], b: [1.0], c: [4.0]})) == {("x", 0): math.inf, ("y", 0): 2.0}


def test_shards_of_ranks_meet_before_they_are_summed():
    a, b = part("a", ("all", 1)), part("b", ("all", 1))
    of_ranks = [window({a: [2 * 1.0], b: [2 * 4.0]}), window({a: [2 * 8.0], b: [2 * 12.0]})]
    assert written(merge_windows(*of_ranks)) == {("all", 0): 5.0}


def test_a_sum_whose_step_was_flushed_in_the_middle_is_written_anew_from_all_parts():
    a, b = part("a", ("all", 1)), part("b", ("all", 1))
    first, second = window({a: [9.0], b: [None]}), window({a: [None], b: [16.0]})
    tail = Tail.of(first, None)
    tail.merge_into(second)
    assert (written(first), written(second)) == ({("all", 0): 3.0}, {("all", 0): 5.0})


def test_a_window_without_parts_is_as_it_was():
    values, is_there = np.array([[1.0]]), np.array([[True]])
    found = summed(values, is_there, [ScalarSeries("loss", (), "mean")])
    assert found[0] is values
    assert found[1] is is_there
    assert found[2] == [("loss", ())]
