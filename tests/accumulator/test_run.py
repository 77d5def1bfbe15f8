"""What a run refuses or notes at the call, and what becomes of it in copies and forked processes."""

import copy
import os
import pickle
import signal
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from d9d_tracker import (
    AccumulatorConfig,
    Histogram,
    JsonlTrackerConfig,
    RunConfig,
    TrackerTypeError,
    TrackerValueError,
    read,
    tracker_from_config,
)


@pytest.mark.parametrize("step", [-1, 2**63, 2**70])
def test_a_step_that_int64_does_not_hold_is_refused_and_costs_nothing(recorded, step):
    tracker = recorded(sync_every=2)
    with tracker.open() as run:
        for now in range(3):
            run.set_step(now)
            run.scalar("loss", now)
        with pytest.raises(TrackerValueError, match=f"set_step\\({step}\\): a step is between 0 and"):
            run.set_step(step)
        run.set_step(3)
    assert tracker.run.points("loss") == {0: 0, 1: 1, 2: 2}


@pytest.mark.parametrize(
    ("steps", "values", "warns"), [(0, 2, True), (0, 1, False), (1, 2, False)], ids=["forgotten", "one", "called"]
)
def test_forgetting_set_step_is_noticed(recorded, caplog, steps, values, warns):
    tracker = recorded()
    with tracker.open() as run:
        for step in range(steps):
            run.set_step(step)
        for value in range(values):
            run.scalar("loss", value)
    assert ("set_step was never called" in caplog.text) == warns


@pytest.mark.parametrize(
    ("distributed", "size", "warns"), [("auto", "4", True), ("off", "4", False), ("auto", "1", False)]
)
def test_a_job_that_is_not_initialised_is_noticed(recorded, caplog, monkeypatch, distributed, size, warns):
    monkeypatch.setenv("WORLD_SIZE", size)
    with recorded(distributed=distributed).open():
        pass
    assert ("WORLD_SIZE is 4 but torch.distributed is not initialised" in caplog.text) == warns


def test_scalars_and_bins_do_not_share_a_series(recorded):
    tracker = recorded()
    with tracker.open() as run:
        run.scalar("loss", 1.0)
        run.bins("values", torch.ones(3))
        with pytest.raises(TrackerValueError, match=r"'loss' was logged with scalar before.*use another name"):
            run.bins("loss", torch.ones(3))
        with pytest.raises(TrackerValueError, match=r"'values' was logged with bins before.*use another name"):
            run.scalar("values", 1.0)
        run.bins("loss", torch.ones(3), {"part": "distribution"})
    assert len(tracker.run.records) == 3


def test_a_closed_run_takes_nothing_and_says_so_once(recorded, caplog):
    tracker = recorded()
    with tracker.open() as run:
        run.scalar("loss", 1.0)
    run.set_context({"stage": "serving"})
    for _ in range(3):
        run.scalar("loss", 2.0)
        run.scalars({"loss": 2.0})
        run.bins("values", torch.ones(2))
    assert caplog.text.count("while no run was open") == 1
    assert "loss was logged" in caplog.text
    for method in (run.flush, lambda: run.set_step(1), lambda: run.watch(nn.Linear(1, 1))):
        with pytest.raises(TrackerValueError, match="the run is closed"):
            method()
    with tracker.open() as run:
        run.scalar("loss", 3.0)
    assert [record.value for kept in tracker.backend.runs.values() for record in kept.records] == [1.0, 3.0]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (10**400, TrackerValueError, "does not fit into float64"),
        (np.array("x"), TrackerTypeError, "a NumPy array of <U1 holds no number"),
        (torch.ones(1).to_mkldnn(), TrackerTypeError, "cannot read a number of layout torch._mkldnn; pass a float"),
        ("0.5", TrackerTypeError, r"'0\.5' of type str; pass float\(\.\.\.\)"),
    ],
)
def test_what_is_no_number_is_refused_by_name(recorded, value, error, message):
    with recorded().open() as run, pytest.raises(error, match=f"series 'loss'.*{message}"):
        run.scalar("loss", value)


@pytest.mark.parametrize("values", [[1.0, 2.0], np.ones(2)])
def test_what_is_no_tensor_is_told_the_way(recorded, values):
    with recorded().open() as run, pytest.raises(TrackerTypeError, match=r"'values'.*pass torch\.as_tensor"):
        run.bins("values", values)


class Logging(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.run = run
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        self.run.scalar("mean", x.mean())
        return self.linear(x)


def test_a_copied_module_logs_to_the_same_run_and_is_not_watched(recorded):
    tracker = recorded()
    with tracker.open() as run:
        model = Logging(run)
        run.watch(model, gradients=False, activations=True)
        average = torch.optim.swa_utils.AveragedModel(model)
        copied = copy.deepcopy(model)
        assert copied.run is average.module.run is run
        for module in (model, average, copied):
            module(torch.ones(1, 2))
    found = {record.name: record.value for record in tracker.run.records}
    assert found["mean"] == 1.0
    assert found["activations/linear"].count == 2


def test_a_module_that_holds_a_run_is_not_pickled(recorded):
    with recorded().open() as run, pytest.raises(TrackerTypeError, match=r"save the state_dict\(\)"):
        pickle.dumps(Logging(run))


def in_child(function: Callable[[], None]) -> str:
    """Run a function in a forked process and return the error that it raised, as words."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # ends a child that waits for threads it has not
        try:
            function()
        except BaseException as error:
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        words = answer.read()
    os.waitpid(child, 0)
    return words


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_in_a_forked_process_the_run_is_closed(recorded):
    tracker = recorded()
    with tracker.open() as run:
        run.scalar("loss", 1.0)
        for call in (run.flush, lambda: run.set_step(1)):
            assert "the run is closed" in in_child(call)
        for call in (lambda: run.scalar("loss", 2.0), lambda: run.bins("values", torch.ones(2))):
            assert in_child(call) == ""
        assert "forked process" in in_child(tracker.tracker.state_dict)
        assert run.is_open
    assert tracker.run.points("loss") == {0: 1.0}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_leaves_the_run_without_waiting(recorded):
    tracker, parent = recorded(), os.getpid()
    reader, writer = os.pipe()
    try:
        with tracker.open() as run:
            run.scalar("loss", 1.0)
            child = os.fork()
            if child == 0:
                signal.alarm(30)
                raise ZeroDivisionError
    except ZeroDivisionError:
        os.write(writer, b"left")
    finally:
        if os.getpid() != parent:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    assert os.read(reader, 10) == b"left"
    os.close(reader)
    assert tracker.run.points("loss") == {0: 1.0}


@pytest.mark.parametrize("kind", [np.int64, np.uint8, int])
def test_whatever_is_an_index_is_a_step(recorded, kind):
    tracker = recorded()
    with tracker.open() as run:
        for step in range(3):
            run.set_step(kind(step))
            run.scalar("loss", step)
        for other in (1.0, True, "3", torch.tensor(3)):
            with pytest.raises(TrackerTypeError, match="a step is an int"):
                run.set_step(other)
    assert tracker.run.points("loss") == {0: 0, 1: 1, 2: 2}


def test_tags_that_are_numbers_become_text(recorded):
    tracker = recorded()
    with tracker.open() as run:
        run.set_context({"fold": 3})
        with run.context(rank=np.int64(7)):
            run.scalar("loss", 1.0, {"lr": 0.5, "ema": True})
        handle = run.scalar_series("handle", {"layer": 2})
        handle.scalar(1.0)
    contexts = {record.name: record.context for record in tracker.run.records}
    assert contexts["loss"] == {"fold": "3", "rank": "7", "lr": "0.5", "ema": "True"}
    assert contexts["handle"] == {"fold": "3", "layer": "2"}


@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_no_number_among_others_is_left_out_and_named_once(recorded, caplog, compiled):
    tracker = recorded()
    names = {"none": None, "text": "a", "nested": {"a": 1.0}, "list": [1.0]}
    names = {f"{name} {compiled}": value for name, value in names.items()}

    def log(values):
        run.scalars({"loss": values.sum(), **names, "lr": 0.5})
        return values * 2

    with tracker.open() as run:
        function = torch.compile(log, fullgraph=True, backend="eager") if compiled else log
        for step in range(3):
            run.set_step(step)
            function(torch.ones(2))
        with pytest.raises(TrackerTypeError, match="not NoneType"):
            run.scalar("loss", None)
        run.scalars(dict.fromkeys(names))
    assert tracker.run.points("loss") == dict.fromkeys(range(3), 2.0)
    assert tracker.run.points("lr") == dict.fromkeys(range(3), 0.5)
    for name, value in names.items():
        assert caplog.text.count(f"{name!r} is left out, now and later: it is a {type(value).__name__}") == 1


def test_values_of_a_step_of_their_own(recorded):
    tracker = recorded(sync_every=2)
    with tracker.open() as run:
        run.set_context({"stage": "train"})
        for step in range(0, 100, 10):
            run.set_step(step)
            run.scalar("loss", step)
            run.log_at(step // 10, {"val/acc": torch.tensor(0.5), "lr": step}, {"stage": "eval"})
        for step in (-1, 2**63, 1.5):
            with pytest.raises((TrackerValueError, TrackerTypeError), match=r"log_at|a step is an int"):
                run.log_at(step, {"a": 1.0})
        for bad, error in (({"a": "b"}, TrackerTypeError), ({"": 1.0}, TrackerValueError), ("a", TrackerTypeError)):
            with pytest.raises(error):
                run.log_at(3, bad)
    assert tracker.run.points("loss", stage="train") == {step: step for step in range(0, 100, 10)}
    assert tracker.run.points("val/acc", stage="eval") == dict.fromkeys(range(10), 0.5)
    assert tracker.run.points("lr", stage="eval") == {epoch: 10 * epoch for epoch in range(10)}
    run.log_at(3, {"lr": 1.0})  # the run is closed


def test_what_is_flushed_in_its_step_stands_in_place_of_what_comes_after(recorded):
    tracker = recorded(sync_every=4)
    with tracker.open() as run:
        run.set_step(3)
        run.scalar("a", 1.0)
        run.log_at(3, {"a": -1.0, "b": Histogram.from_values(torch.ones(2))})
        run.flush()
        for _ in range(2):
            run.scalar("a", 3.0)
            run.flush()
        run.log_at(3, {"a": -2.0})
        run.scalar("a", 3.0)
        run.set_step(4)
        run.scalar("a", 4.0)
    assert [record.value for record in tracker.run.records if record.name == "a"] == [-1.0, -1.0, -1.0, -2.0, 4.0]
    assert tracker.run.histograms("b")[3].count == 2


def test_values_of_a_step_to_come_wait_for_it_or_for_the_end(tmp_path):
    config = JsonlTrackerConfig(path=tmp_path / "runs", accumulator=AccumulatorConfig(device="cpu", sync_every=2))

    def stored():
        (run,) = read(tmp_path / "runs")
        series = run.scalars("ahead")
        return dict(zip(series.steps.tolist(), series.values.tolist(), strict=True))

    tracker = tracker_from_config(config)
    with tracker.open(RunConfig(name="x")) as run:
        for step in range(3):
            run.set_step(step)
            run.log_at(step + 4, {"ahead": float(step)})
        state = tracker.state_dict()
        run.set_step(4)
        run.set_step(5)
        run.flush()
        assert stored() == {4: 0.0, 5: 1.0}
    assert stored() == {4: 0.0, 5: 1.0, 6: 2.0}
    tracker = tracker_from_config(config)
    tracker.load_state_dict(state)
    with tracker.open(RunConfig(name="x")) as run:
        run.set_step(3)
        run.log_at(6, {"ahead": 7.0})
    assert stored() == {4: 0.0, 5: 1.0, 6: 7.0}


def test_values_that_wait_because_set_step_is_not_called_are_said_once(recorded, caplog):
    tracker = recorded()
    for _ in range(2):
        with tracker.open() as run:
            for step in range(3):
                run.log_at(step, {"a": 1.0})
            run.set_step(5)
            run.log_at(9, {"a": 1.0})
    assert caplog.text.count("log_at(1): such values wait for their step") == 2
    assert caplog.text.count("such values wait") == 2


def test_a_step_is_a_few_calls(recorded):
    """Between two steps of training, each is fetched from far."""
    calls = []

    def note(frame, event, argument):
        if event in ("call", "c_call"):
            calls.append(frame.f_code.co_name if event == "call" else argument.__name__)

    with recorded(sync_every=10).open() as run:
        for step in range(8):
            if step == 7:
                sys.setprofile(note)
            run.set_step(step)
            sys.setprofile(None)
            run.scalar("loss", 1.0)
    assert "advance" in calls
    assert len(calls) <= 19, calls


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [torch.ones(1).to_sparse(), torch.ones((), requires_grad=True)])
def test_what_is_a_number_is_read_the_first_time_and_the_second(recorded, value):
    tracker = recorded()
    with tracker.open() as run:
        for step in range(2):
            run.set_step(step)
            run.scalar("loss", value)
            run.log_at(step, {"late": value})
    assert tracker.run.points("loss") == tracker.run.points("late") == {0: 1.0, 1: 1.0}
