"""Points as columns are the records they were made of."""

import math

import numpy as np
import pytest
import torch

from d9d_tracker.points import Points
from d9d_tracker.record import Histogram, Record

HISTOGRAM = Histogram.from_values(torch.arange(5.0))
TAGS = {"stage": "eval"}
RECORDS = [
    Record("loss", 1, {}, 0.5, 10.0),
    Record("loss", 1, TAGS, 0.25, None),
    Record("lr", 2, {}, 1.0, 11.0),
    Record("weights", 2, {}, HISTOGRAM, 11.0),
    Record("loss", 2**60, {}, -0.0, 12.0),
    Record("weights", 2**60, {}, HISTOGRAM, None),
]


def test_records_come_back_as_they_were():
    points = Points.of(RECORDS)
    assert list(points) == RECORDS
    assert len(points) == len(RECORDS)
    assert points[-1] == RECORDS[-1]
    assert points[1:3] == RECORDS[1:3]
    assert all(type(record.value) is float and type(record.step) is int for record in points[:3])
    assert np.signbit(points[4].value)


def test_of_one_step_numbers_come_before_histograms():
    records = [RECORDS[3], RECORDS[2]]
    assert list(Points.of(records)) == [RECORDS[2], RECORDS[3]]


def test_what_they_are_is_known_without_the_records():
    points = Points.of(RECORDS)
    assert (points.first, points.last, points.names) == (1, 2**60, ("loss", "lr", "weights"))
    only = Points.of(RECORDS[3:4])
    assert (only.first, only.last, only.names) == (2, 2, ("weights",))
    assert Points.of(points) is points


def test_series_without_points_are_not_named():
    points = Points([("a", {}), ("b", {})], *(np.array([1], dtype=d) for d in ("i8", "i8", "f8", "f8")), [])
    assert points.names == ("b",)
    assert list(points) == [Record("b", 1, {}, 1.0, 1.0)]


def test_bytes_give_back_what_they_were_made_of():
    points = Points.of([*RECORDS, Record("ä", 2**60, {"tag": "\ud800"}, math.nan)]).replaced([], {"a": [1, None]})
    data = points.dump()
    again = Points.load(data)
    assert (str(list(again)), again.hparams) == (str(list(points)), {"a": [1, None]})  # NaN equals NaN
    assert again.dump() == data
    assert len(Points.load(Points.of([]).dump())) == 0


def test_columns_that_are_views_become_bytes_too():
    whole = Points.of(RECORDS[:3])
    every_second = Points(whole.series, *(c[::2] for c in (whole.places, whole.steps, whole.times, whole.values)), [])
    assert list(Points.load(every_second.dump())) == [RECORDS[0], RECORDS[2]]


def test_of_one_series_and_step_what_came_last_stands():
    late = [
        Record("loss", 1, {}, 7.0),
        Record("lr", 0, {}, 3.0),
        Record("loss", 1, {}, 8.0),
        Record("weights", 2, {}, 1.0),
    ]
    points = Points.of(RECORDS).replaced([], {"a": 1}).replaced(late)
    assert list(points) == [late[1], RECORDS[1], late[2], RECORDS[2], late[3], *RECORDS[3:]]
    assert points.hparams == {"a": 1}


def test_what_came_last_replaces_its_own_kind():
    first, last, number = RECORDS[3], replace_value(RECORDS[3]), RECORDS[3]._replace(value=5.0)
    assert isinstance(first.value, Histogram)
    points = Points.of([first]).replaced([number, last])
    assert list(points) == [number, last]
    assert points[1].value is last.value


def replace_value(record):
    return record._replace(value=Histogram.from_values(torch.tensor([9.0])))


def test_no_points_are_false():
    assert not Points.of([])
    assert list(Points.of([])) == []


@pytest.mark.parametrize("numbers", [1, 1000])
def test_memory_is_what_the_columns_take(numbers):
    points = Points.of([Record("a", step, TAGS, 1.0) for step in range(numbers)])
    columns = (points.places, points.steps, points.times, points.values)
    assert points.nbytes == sum(column.nbytes for column in columns)
    assert len(points.series) == 1
