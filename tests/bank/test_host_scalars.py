"""Numbers of eager code on a CPU: what they cost, and that the quick way and the other agree on everything."""

import math

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from d9d_tracker import TrackerTypeError, TrackerValueError
from d9d_tracker.bank.scalars import ScalarBank
from d9d_tracker.series.series import REDUCTIONS
from d9d_tracker_kernels.lanes import LANES


def operators(call) -> list[str]:
    """Return which operators of torch a call runs."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        call()
    return [event.name for event in profiled.events() if event.name.startswith(("aten::", "d9d_tracker::"))]


def test_the_state_of_a_series_lies_together():
    bank = ScalarBank(8, 100, torch.device("cpu"))
    assert (bank.current.stride(), bank.window.stride()) == ((1, LANES), (101 * LANES, 1, LANES))


READ = ["aten::item", "aten::_local_scalar_dense"]


def test_what_a_call_asks_of_torch_is_to_read_the_value(recorded):
    tracker = recorded(scalar_resolution="step", sync_every=1000)
    values = {f"v{index}": torch.tensor(float(index)) for index in range(10)}
    with tracker.open() as run:
        handle = run.scalar_series("handle")
        calls = {
            "scalar": lambda: run.scalar("loss", torch.tensor(1.0)),
            "a number": lambda: run.scalar("number", 1.0),
            "a handle": lambda: handle.scalar(values["v1"], weight=2.0),
            "scalars": lambda: run.scalars(values, {"split": "val"}),
            "metrics of a framework": lambda: run.scalars({**values, "note": "text", "none": None}),
        }
        for call in calls.values():
            call()
        assert operators(lambda: run.scalar("v0", values["v0"], {"split": "val"})) == READ
        assert operators(calls["a number"]) == []
        assert operators(calls["a handle"]) == READ
        assert operators(calls["scalars"]) == 10 * READ
        assert operators(calls["metrics of a framework"]) == 10 * READ
        assert operators(lambda: run.set_step(1)) == []


class Untouched(TorchDispatchMode):
    """A mode that changes nothing, which sends calls the other way: through the operator."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


VALUES = [1.0, -2.5, math.inf, -0.0, 5e-324, True, 7, 2**60 + 1, np.float32(0.1), np.float64(0.3), np.int8(-3)]
TENSORS = [
    torch.tensor(value, dtype=dtype)
    for value in (0.0, 1.7, -3.2)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)
    if not (dtype == torch.uint8 and value < 0)
]


@pytest.mark.parametrize("nan", [False, True], ids=["numbers", "with NaN"])
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_the_quick_way_and_the_operator_agree(recorded, reduce, nan):
    results = []
    for through_operator in (False, True):
        tracker = recorded()
        with tracker.open() as run:
            for index, value in enumerate([*VALUES, *([math.nan] * nan), *TENSORS, torch.nn.Parameter(torch.ones(1))]):
                weight = index % 3 if reduce == "mean" else None

                def log(value=value, weight=weight, run=run):
                    run.scalar("loss", value, reduce=reduce, weight=weight)
                    run.scalars({"a": value, "b": 2.0}, {"of": "many"}, reduce=reduce)

                if through_operator:
                    with Untouched():
                        log()
                else:
                    log()
        results.append([(record.name, record.value) for record in tracker.run.records])
    assert len(results[0]) == 3
    assert str(results[0]) == str(results[1])  # NaN equals NaN


def test_what_is_refused_is_refused_the_second_time_too(recorded):
    tracker = recorded()
    with tracker.open() as run:
        for _ in range(2):
            run.scalar("loss", 1.0)
            with pytest.raises(TrackerValueError, match="one element"):
                run.scalar("loss", torch.ones(3))
            with pytest.raises(TrackerTypeError, match="not real"):
                run.scalar("loss", torch.tensor(1j))
            with pytest.raises(TrackerTypeError, match="not 'many' of type str"):
                run.scalar("loss", "many")
            with pytest.raises(TrackerValueError, match="does not fit into float64"):
                run.scalar("loss", 10**400)
            with pytest.raises(TrackerValueError, match="reduce='mean' before"):
                run.scalar("loss", 1.0, reduce="max")
            with pytest.raises(TrackerTypeError, match="name of a series is a str, not list"):
                run.scalar(["loss"], 1.0)
            with pytest.raises(TrackerValueError, match="one element"):
                run.scalars({"loss": 1.0, "other": torch.ones(2)})
    assert tracker.run.points("loss") == {0: 1.0}
    assert tracker.run.points("other") == {}


def test_slots_of_a_run_are_not_those_of_the_next(recorded):
    tracker = recorded()
    for names in (("a", "b"), ("b", "c", "a")):
        with tracker.open() as run:
            for name in names:
                run.scalar(name, float(ord(name)))
        assert tracker.run.points("a") == {0: 97.0}
        assert tracker.run.points("b") == {0: 98.0}


def test_a_series_that_comes_late_in_a_window_has_no_points_before(recorded):
    tracker = recorded(scalar_resolution="step", sync_every=4)
    for late in ([9], range(10), [5]):  # the second run leaves values in every row
        with tracker.open() as run:
            for step in range(10):
                run.set_step(step)
                run.scalar("early", step)
                if step in late:
                    run.scalars({f"late {index}": step for index in range(5)})
        assert tracker.run.points("late 4") == {step: step for step in late}
        assert tracker.run.points("early") == {step: step for step in range(10)}


@pytest.mark.parametrize("scope", ["spread", "rank"])
def test_a_series_of_another_scope_is_not_known_without_it(recorded, scope):
    tracker = recorded()
    with tracker.open() as run:
        run.scalar("loss", 1.0, {"rank": "0"}, scope=scope)
        if scope == "spread":
            with pytest.raises(TrackerValueError, match="scope=spread"):
                run.scalar("loss", 2.0, {"rank": "0"})
        run.scalar("loss", 3.0)
    assert tracker.run.points("loss") == {0: 3.0}
