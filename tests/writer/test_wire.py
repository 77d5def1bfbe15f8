"""What travels to the writer arrives as it was, to the bit."""

import math
import sqlite3
from multiprocessing import Pipe

import numpy as np
import pytest
import torch

from d9d_tracker.points import Points
from d9d_tracker.record import Histogram, Record
from d9d_tracker.writer.wire import from_error, receive, send, to_error


def plain(record: Record) -> tuple:
    value = record.value
    if isinstance(value, Histogram):
        fields = [getattr(value, name) for name in Histogram.__slots__]
        return (*record[:3], record.time, *(np.asarray(field).tobytes() for field in fields))
    return (*record[:3], record.time, np.float64(value).tobytes())


def through(records):
    ours, theirs = Pipe()
    send(ours, {"call": "write"}, Points.of(records))
    header, arrived = receive(theirs)
    assert header == {"call": "write"}
    assert arrived is not None
    assert [plain(record) for record in arrived] == [plain(record) for record in records]
    return list(arrived)


def test_points_arrive_as_they_were():
    tags = {"stage": "träin \ud800", "rank": "0"}
    values = [0.1, -0.0, math.nan, math.inf, -math.inf, 5e-324, 1.7976931348623157e308]
    points = [Record("loss", 2**60 + step, tags, value, 1.5 + step) for step, value in enumerate(values)]
    points.insert(
        3, Record("w", 2**60 + 2, {}, Histogram.from_values(torch.randn(100, generator=torch.manual_seed(0))))
    )
    points.append(Record("w", 2**61, {}, Histogram.from_values(torch.tensor([math.nan, math.inf]))))
    points.append(Record("w", 2**61, {"w": ""}, Histogram.from_values(torch.empty(0))))
    arrived = through(points)
    assert arrived[0].context is arrived[1].context, "one dict for a series, not one for a point"


def test_no_points_are_points_too():
    assert through([]) == []


def test_a_message_without_points():
    ours, theirs = Pipe()
    send(ours, {"call": "rewind", "step": 3})
    assert receive(theirs) == ({"call": "rewind", "step": 3}, None)


class OwnError(sqlite3.OperationalError):
    pass


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ValueError("bad"), ValueError, "bad"),
        (FileNotFoundError(2, "No such file", "x"), FileNotFoundError, "[Errno 2] No such file: 'x'"),
        (OwnError("locked"), Exception, "OwnError: locked"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
        (
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
            UnicodeError,
            "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        ),
        (type("eval", (ValueError,), {})("1 + 1"), ValueError, "eval: 1 + 1"),
        (ExceptionGroup("two", [ValueError(), OSError()]), Exception, "ExceptionGroup: two (2 sub-exceptions)"),
    ],
)
def test_an_error_is_of_the_nearest_type_that_python_has(error, kind, words):
    found = to_error(from_error(error))
    assert type(found) is kind
    assert str(found) == words
