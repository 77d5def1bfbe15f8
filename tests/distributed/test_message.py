import math

import numpy as np
from windows import same, window_of

from d9d_tracker.accumulator.distributed.message import Packer, Unpacker
from d9d_tracker.accumulator.distributed.part import END, Part
from d9d_tracker.accumulator.registry import ScalarSeries

VALUES = {3: {"a": [1.5, math.nan], "b": [-math.inf]}, 4: {"a": [2.0]}}


def through_the_wire(parts: list[Part]) -> list[Part]:
    packer, unpacker = Packer(), Unpacker()
    return [unpacker.unpack(packer.pack(part)) for part in parts]


def test_a_part_arrives_as_it_was_sent():
    part = Part.of_one_rank(window_of(VALUES, VALUES, "min", index=7), ended=False)
    part.scalar_ranks = np.array([3, 2])
    part.missing, part.left = ((1, 1), (5, 9)), ((2, 2),)
    (arrived,) = through_the_wire([part])
    assert same(arrived.window, part.window)
    assert arrived.window.index == 7
    assert (arrived.through, arrived.missing, arrived.left) == ((4, False), part.missing, part.left)
    assert arrived.scalar_ranks.tolist() == [3, 2]
    assert arrived.histogram_ranks.tolist() == [1, 1]


def test_the_end_arrives():
    (arrived,) = through_the_wire([Part.nothing(3, END)])
    assert arrived.through == END
    assert arrived.is_empty


def test_series_travel_only_when_they_changed():
    names = {f"a series with a rather long name, number {number}": [1.0] for number in range(10)}
    window = window_of({1: names})
    packer = Packer()
    first, second = (len(packer.pack(Part.of_one_rank(window, True))) for _ in range(2))
    assert first - second > 10 * len("a series with a rather long name, number 0")
    window.scalars = [*window.scalars[:-1], ScalarSeries("another", (("stage", "eval"),), "sum")]
    part = Part.of_one_rank(window, True)
    assert len(packer.pack(part)) > second

    parts = [Part.of_one_rank(window_of({1: names}), True)] * 2 + [part, part]
    assert all(same(one.window, other.window) for one, other in zip(parts, through_the_wire(parts), strict=True))
