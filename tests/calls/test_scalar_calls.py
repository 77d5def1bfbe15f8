"""Scalar semantics, end to end: from a call on a run to the point a backend is handed."""

import math
import re

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

from d9d_tracker import TrackerTypeError, TrackerValueError

FAKE = FakeTensorMode().from_tensor(torch.ones(()))


def test_every_point_equals_the_eager_value_at_its_step(recorded):
    tracker = recorded(sync_every=7)
    generator = torch.Generator().manual_seed(0)
    losses = [torch.rand((), generator=generator) * 10 for _ in range(40)]
    with tracker.open() as run:
        for step, loss in enumerate(losses):
            run.set_step(step)
            run.scalar("loss", loss)
    points = tracker.run.points("loss")
    assert list(points) == list(range(40))
    assert [np.float32(value) for value in points.values()] == [loss.item() for loss in losses]


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_tensors_of_one_element_of_any_dtype(recorded, dtype, shape):
    value = torch.tensor(1.37).to(dtype).reshape(shape)
    tracker = recorded()
    with tracker.open() as run:
        run.scalar("value", value)
    assert tracker.run.points("value") == {0: value.to(torch.float64).item()}


@pytest.mark.parametrize("value", [3, 2.5, True, np.float32(0.1), np.int64(7), np.float64(1e300)])
def test_numbers(recorded, value):
    tracker = recorded()
    with tracker.open() as run:
        run.scalar("value", value)
    assert tracker.run.points("value") == {0: float(value)}


@pytest.mark.parametrize(
    ("reduce", "expected"), [("mean", 2.0), ("sum", 6.0), ("min", -1.0), ("max", 4.0), ("last", -1.0)]
)
def test_values_of_one_step_combine_by_the_reduction(recorded, reduce, expected):
    tracker = recorded()
    with tracker.open() as run:
        for value in (3.0, 4.0, -1.0):
            run.scalar("value", torch.tensor(value), reduce=reduce)
        run.set_step(1)
        run.scalar("value", 5.0, reduce=reduce)
    assert tracker.run.points("value") == {0: expected, 1: 5.0}


def test_a_mean_is_weighted(recorded):
    tracker = recorded()
    with tracker.open() as run:
        run.scalar("loss", torch.tensor(1.0), weight=3)
        run.scalar("loss", torch.tensor(5.0), weight=torch.tensor(1))
        run.scalars({"a": 1.0, "b": torch.tensor(2.0)}, weight=2)
        run.scalars({"a": 4.0, "b": torch.tensor(5.0)}, weight=torch.tensor(1.0))
    assert tracker.run.points("loss") == {0: 2.0}
    assert tracker.run.points("a") == {0: 2.0}
    assert tracker.run.points("b") == {0: 3.0}


@pytest.mark.parametrize("reduce", ["mean", "sum", "min", "max"])
@pytest.mark.parametrize("others", [(), (1.0,), (math.inf,), (-math.inf,)])
def test_a_nan_is_seen(recorded, reduce, others):
    tracker = recorded()
    with tracker.open() as run:
        for value in (*others, math.nan, *others):
            run.scalar("loss", torch.tensor(value), reduce=reduce)
    assert math.isnan(tracker.run.points("loss")[0])


@pytest.mark.parametrize(
    ("reduce", "expected"), [("mean", math.inf), ("sum", math.inf), ("min", 1.0), ("max", math.inf)]
)
def test_an_infinity_is_what_eager_arithmetic_gives(recorded, reduce, expected):
    tracker = recorded()
    with tracker.open() as run:
        run.scalar("loss", torch.tensor(math.inf), reduce=reduce)
        run.scalar("loss", torch.tensor(1.0), reduce=reduce)
    assert tracker.run.points("loss") == {0: expected}


def test_contexts_are_separate_series_and_the_calls_own_wins(recorded):
    tracker = recorded(sync_every=2)
    with tracker.open() as run:
        for step in range(3):
            run.set_step(step)
            run.set_context({"stage": "train", "model": "small"})
            run.scalar("loss", step)
            run.scalar("loss", 10 + step, {"stage": "eval"})
            run.set_context({})
            run.scalar("loss", 20 + step)
    assert tracker.run.points("loss", stage="train", model="small") == {0: 0.0, 1: 1.0, 2: 2.0}
    assert tracker.run.points("loss", stage="eval", model="small") == {0: 10.0, 1: 11.0, 2: 12.0}
    assert tracker.run.points("loss") == {0: 20.0, 1: 21.0, 2: 22.0}


def test_a_series_has_points_only_where_it_was_logged(recorded):
    tracker = recorded(sync_every=4)
    with tracker.open() as run:
        for step in range(10):
            run.set_step(step)
            if step % 3 == 0:
                run.scalar("sometimes", step)
        run.set_step(1000)
        run.scalar("sometimes", 1000)
    assert tracker.run.points("sometimes") == {0: 0.0, 3: 3.0, 6: 6.0, 9: 9.0, 1000: 1000.0}


def test_one_point_per_window(recorded):
    tracker = recorded(sync_every=4, scalar_resolution="window")
    with tracker.open() as run:
        for step in range(10):
            run.set_step(step)
            run.scalar("loss", step)
    assert tracker.run.points("loss") == {3: 1.5, 7: 5.5, 9: 8.5}
    assert tracker.tracker.copies == 3


def test_values_are_not_kept_alive_or_part_of_autograd(recorded):
    tracker = recorded()
    weight = torch.ones(3, requires_grad=True)
    with tracker.open() as run:
        loss = (weight * 2).sum()
        run.scalar("loss", loss)
        run.scalars({"a": loss, "b": loss * 2})
        loss.backward()
    assert torch.equal(weight.grad, torch.full((3,), 2.0))
    assert not run.buffers.scalars.current.requires_grad


def test_records_arrive_in_the_order_of_their_steps(recorded):
    tracker = recorded(sync_every=8)
    with tracker.open() as run:
        for step in range(30):
            run.set_step(step)
            run.scalar("b", step)
            run.scalar("a", step)
            run.bins("h", torch.ones(2))
    steps = [record.step for record in tracker.run.records]
    assert steps == sorted(steps)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda run: run.scalar("loss", torch.ones(2, 3)), TrackerValueError, ("'loss'", "(2, 3)", "bins")),
        (lambda run: run.scalar("loss", torch.ones(0)), TrackerValueError, ("'loss'", "(0,)")),
        (lambda run: run.scalar("loss", "0.5"), TrackerTypeError, ("'loss'", "'0.5'", "str")),
        (lambda run: run.scalar("loss", None), TrackerTypeError, ("'loss'", "NoneType")),
        (lambda run: run.scalar("loss", 1j), TrackerTypeError, ("'loss'", "complex")),
        (lambda run: run.scalar("loss", np.timedelta64(5, "s")), TrackerTypeError, ("'loss'", "timedelta64", "divide")),
        (lambda run: run.scalar("loss", np.timedelta64(5, "ns")), TrackerTypeError, ("'loss'", "timedelta64")),
        (lambda run: run.scalar("loss", FAKE), TrackerValueError, ("'loss'", "FakeTensor", "log what")),
        (lambda run: run.bins("grad", FAKE), TrackerValueError, ("'grad'", "FakeTensor", "log what")),
        (lambda run: run.scalar("loss", torch.tensor(1j)), TrackerTypeError, ("'loss'", "complex64")),
        (lambda run: run.scalar("", 1.0), TrackerValueError, ("name is empty",)),
        (lambda run: run.scalar(3, 1.0), TrackerTypeError, ("name", "int")),
        (lambda run: run.scalar("loss", 1.0, {"fold": [1]}), TrackerTypeError, ("fold", "list", "str")),
        (lambda run: run.scalar("loss", 1.0, "eval"), TrackerTypeError, ("context", "str")),
        (lambda run: run.scalar("loss", 1.0, reduce="median"), TrackerValueError, ("'loss'", "median", "mean")),
        (lambda run: run.scalar("loss", 1.0, reduce="sum", weight=2), TrackerValueError, ("'loss'", "weight")),
        (lambda run: run.scalar("loss", 1.0, weight=torch.ones(2)), TrackerValueError, ("loss (weight)", "(2,)")),
        (lambda run: run.set_context({"stage": None}), TrackerTypeError, ("stage", "NoneType")),
        (lambda run: run.set_step(1.0), TrackerTypeError, ("1.0", "float", "int(step)")),
        (lambda run: run.set_step(True), TrackerTypeError, ("bool",)),
        (lambda run: run.set_step(-1), TrackerValueError, ("-1", "between 0 and")),
    ],
)
def test_bad_calls_are_refused_and_leave_nothing(recorded, call, error, words):
    tracker = recorded()
    with tracker.open() as run:
        with pytest.raises(error) as caught:
            call(run)
        run.scalar("good", 1.0)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert isinstance(caught.value, ValueError | TypeError)
    assert [record.name for record in tracker.run.records] == ["good"]


def test_one_bad_value_of_many_leaves_the_others_unwritten(recorded):
    tracker = recorded()
    with tracker.open() as run, pytest.raises(TrackerValueError, match="'b'"):
        run.scalars({"a": 1.0, "b": torch.ones(2)})
    assert tracker.run.records == []


def test_steps_never_go_back(recorded):
    tracker = recorded()
    with tracker.open() as run:
        run.set_step(5)
        run.set_step(5)
        run.scalar("loss", 1.0)
        run.set_step(5)
        run.scalar("loss", 3.0)
        with pytest.raises(TrackerValueError, match=r"set_step\(4\).*step 5"):
            run.set_step(4)
    assert tracker.run.points("loss") == {5: 2.0}


def test_a_series_has_one_reduction(recorded):
    tracker = recorded()
    with tracker.open() as run:
        run.scalar("loss", 1.0)
        with pytest.raises(TrackerValueError, match=r"'loss'.*reduce='mean'.*reduce='sum'"):
            run.scalar("loss", 1.0, reduce="sum")


def test_what_has_no_slot_left_is_dropped_said_once_and_counted(recorded, caplog):
    tracker = recorded(max_scalars=2, max_histograms=1)
    with tracker.open() as run:
        run.scalars({"a": 1.0, "b": 1.0})
        run.bins("h", torch.ones(1))
        for name in "cdc":
            run.scalar(name, 1.0)
        run.scalars({"b": 2.0, "e": 1.0, "a": 2.0}, reduce="mean")
        run.bins_many({"i": torch.ones(1), "h": torch.ones(2)})
        run.counts("j", torch.ones(3, dtype=torch.int64))
        run.scalar("a", 3.0)
        run.set_step(1)
    said = [record.getMessage() for record in caplog.records if record.name == "d9d_tracker"]
    assert len(said) == 3
    assert re.search(r"'c', all 2 .*accumulator\.max_scalars", said[0])
    assert re.search(r"'i', all 1 .*accumulator\.max_histograms", said[1])
    assert said[2].startswith("6 values")
    assert tracker.tracker.report.without_slot == 6
    assert (tracker.run.points("a"), tracker.run.points("b")) == ({0: 2.0}, {0: 1.5})
    assert tracker.run.histograms("h")[0].count == 3
    assert {record.name for record in tracker.run.records} == {"a", "b", "h"}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_value_without_weight_has_no_say_not_even_a_nan(recorded, compiled, as_tensor):
    """As the mean loss of a micro-batch without tokens."""

    def log(values, weights):
        for value, weight in zip(values, weights, strict=True):
            run.scalar("loss", value, weight=weight)
            run.scalars({"a": value, "b": value * 2}, weight=weight)

    tracker = recorded()
    with tracker.open() as run:
        weights = [torch.tensor(weight) for weight in (2.0, 0.0, 6.0)] if as_tensor else [2.0, 0.0, 6.0]
        values = [torch.tensor(value) for value in (1.0, math.nan, 3.0)]
        (torch.compile(log, fullgraph=True, backend="aot_eager") if compiled else log)(values, weights)
        run.set_step(1)
        run.scalar("loss", math.nan, weight=1)
    assert tracker.run.points("a") == {0: 2.5}
    assert tracker.run.points("b") == {0: 5.0}
    loss = tracker.run.points("loss")
    assert loss[0] == 2.5
    assert math.isnan(loss[1])


def test_a_series_of_another_scope_is_refused_also_after_it_is_known(recorded):
    with recorded().open() as run:
        for _ in range(2):
            run.scalar("loss", 1.0, scope="spread")
        with pytest.raises(TrackerValueError, match=r"'loss' was logged with .*scope=spread before"):
            run.scalar("loss", 1.0)
