"""Whatever changes the bank in eager code holds its lock, and what is logged meanwhile is merged once."""

import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from d9d_tracker.bank import buffers as buffers_module
from d9d_tracker.record import Histogram


def noted(monkeypatch, buffers):
    """Return what is changed from now on, and whether the lock was held then."""
    changes = []

    def note(owner, name):
        method = getattr(owner, name)

        def call(*arguments):
            changes.append((name, buffers._is_held()))
            return method(*arguments)

        monkeypatch.setattr(owner, name, call)

    for owner, names in {
        type(buffers): ("count", "add_counts", "merge_histogram"),
        type(buffers.scalars): ("write",),
        type(buffers.scalars.host): ("file", "begin", "merge"),
        type(buffers.histograms): ("reset_",),
    }.items():
        for name in names:
            note(owner, name)
    return changes


def test_eager_code_changes_the_bank_under_its_lock(recorded, monkeypatch):
    tracker, finished = recorded(sync_every=2), Histogram.from_values(torch.ones(2))
    with tracker.open() as run:
        changes = noted(monkeypatch, run.buffers)
        number, population = run.scalar_series("number"), run.bins_series("population")
        for step in range(5):
            run.set_step(step)
            for value in (1.0, torch.tensor(1.0)):
                run.scalar("quick", value)
                run.scalar("whole", value, {"of": "this rank"}, scope="rank")
                run.scalars({"many": value})
                number.scalar(value)
            run.bins("values", torch.ones(2))
            run.bins_many({"a": torch.ones(2), "b": torch.ones(2)})
            run.counts("counts", torch.ones(3, dtype=torch.int64))
            run.histogram("finished", finished)
            population.bins(torch.ones(2))
        run.flush()
        tracker.tracker.state_dict()
    assert {name for name, _ in changes} == {
        *("file", "begin", "write", "merge", "count", "add_counts", "merge_histogram", "reset_")
    }
    assert [name for name, held in changes if not held] == []


def log_at_line(run, number):
    """Log before the n-th line of the buffers' own code, as a signal handler would."""
    seen = 0

    def trace(frame, event, _):
        nonlocal seen
        if frame.f_code.co_filename != buffers_module.__file__:
            return None
        if event == "line":
            seen += 1
            if seen == number:
                run.scalar("sum", 1.0, reduce="sum")
        return trace

    return trace, lambda: seen >= number


CALLS = {
    "scalar": lambda tracker, run: run.scalar("sum", 1.0, reduce="sum"),
    "set_step": lambda tracker, run: run.set_step(3),
    "flush": lambda tracker, run: run.flush(),
    "state_dict": lambda tracker, run: tracker.tracker.state_dict(),
}


@pytest.mark.parametrize(("call", "sync_every"), [*((call, 2) for call in CALLS), ("set_step", 3)])
def test_what_a_signal_handler_logs_at_any_line_is_merged_once(call, sync_every, recorded):
    number = 0
    for number in range(1, 300):
        tracker = recorded(sync_every=sync_every)
        with tracker.open() as run:
            for step in range(3):
                run.set_step(step)
                run.scalar("sum", 1.0, reduce="sum")
            trace, has_logged = log_at_line(run, number)
            sys.settrace(trace)
            try:
                CALLS[call](tracker, run)
            finally:
                sys.settrace(None)
            assert not run.buffers._is_held()
        expected = 3.0 + (call == "scalar") + has_logged()
        assert sum(tracker.run.points("sum").values()) == expected, f"line {number}"
        if not has_logged():
            break
    assert number > 3


def test_what_a_signal_handler_has_logged_belongs_to_its_step(recorded):
    tracker = recorded(sync_every=100)
    with tracker.open() as run:
        for step in range(3):
            run.set_step(step)
            with run.buffers._lock:  # which the thread holds whose handler logs
                run.scalar("a", float(step))
    assert tracker.run.points("a") == {step: float(step) for step in range(3)}


def test_a_state_holds_what_a_signal_handler_has_logged_before(recorded):
    tracker = recorded(sync_every=100)
    with tracker.open() as run:
        with run.buffers._lock:  # which the thread holds whose handler logs
            run.scalar("a", 1.0)
            run.log_at(0, {"b": 2.0})
        state = tracker.tracker.state_dict()
    again = recorded(sync_every=100)
    again.backend.runs = tracker.backend.runs
    again.tracker.load_state_dict(state)
    tracker.run.records.clear()
    with again.open():
        pass
    assert (again.run.points("a"), again.run.points("b")) == ({0: 1.0}, {0: 2.0})


def test_another_thread_waits_for_the_lock_and_loses_nothing(recorded):
    tracker = recorded(sync_every=100)
    with tracker.open() as run:
        with run.buffers._lock:
            other = threading.Thread(target=run.scalar, args=("a", 1.0))
            other.start()
            other.join(0.05)
            assert other.is_alive()
        other.join(10)
    assert tracker.run.points("a") == {0: 1.0}


def test_a_run_begins_at_step_0_on_the_device_too(recorded):
    tracker = recorded(sync_every=100)
    with tracker.open() as run:
        run.set_step(7)
    with tracker.open() as run:
        run.bins("values", torch.ones(4), every=2)
    assert {step: one.count for step, one in tracker.run.histograms("values").items()} == {0: 4}


def test_a_state_that_the_device_does_not_give_in_time_keeps_no_memory(recorded, monkeypatch):
    with recorded().open() as run:
        staging = run.buffers.staging
        copy = staging.copy
        with monkeypatch.context() as patch:
            patch.setattr(staging, "copy", lambda *parts: (copy(*parts)[0], SimpleNamespace(query=lambda: False)))
            for _ in range(3):
                with pytest.raises(RuntimeError, match="has not answered"):
                    run.buffers.snapshot(0.0)
        assert staging._free.qsize() == staging._buffers == 2
