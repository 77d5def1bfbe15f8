"""Windows become points in order, and what a backend takes back is what its window wrote."""

import itertools
import math
import threading
from collections import deque
from contextlib import contextmanager

import pytest
import torch

from d9d_tracker import (
    AccumulatingTracker,
    AccumulatorConfig,
    JsonlTrackerConfig,
    MultiConfig,
    RunConfig,
    TrackerValueError,
    tracker_from_config,
)
from d9d_tracker.bank import staging as window_module
from d9d_tracker.bank.staging import Window
from d9d_tracker.delivery import bounded as bounded_module
from d9d_tracker.delivery.backlog import Backlog
from d9d_tracker.pipeline import pipeline as pipeline_module
from d9d_tracker.pipeline.assembly import Assembly
from d9d_tracker.pipeline.pipeline import Pipeline
from d9d_tracker.sink import SinkLostError
from d9d_tracker.testing import RecordingRun, RecordingTracker

NAME = RunConfig(name="run")


class Forgetful(RecordingTracker):
    """Loses once what came since the last flush, and is opened again."""

    def __init__(self, amends):
        super().__init__()
        self.amends = amends
        self.is_to_lose = False
        self.rewound = []

    @contextmanager
    def open(self, properties):
        with super().open(properties) as run:
            again = ForgetfulRun(properties, self)
            again.records = run.records
            yield again


class ForgetfulRun(RecordingRun):
    def __init__(self, properties, tracker):
        super().__init__(properties)
        self.tracker = tracker
        self.durable = None

    def scalar(self, name, value, context=None):
        if self.durable is None:
            self.durable = len(self.records)
        super().scalar(name, value, context)

    def flush(self):
        if self.tracker.is_to_lose:
            self.tracker.is_to_lose = False
            del self.records[self.durable :]
            raise SinkLostError("gone")
        self.durable = None

    def rewind(self, step):
        self.tracker.rewound.append(step)
        super().rewind(step)


@pytest.mark.parametrize(("amends", "first"), [(True, 6), (False, 5)], ids=["amends", "takes a step once"])
def test_a_window_that_is_taken_back_leaves_what_an_earlier_one_wrote_of_its_first_step(amends, first, config):
    backend = Forgetful(amends)
    tracker = AccumulatingTracker(backend, AccumulatorConfig(**config | {"sync_every": 5}))
    with tracker.open(NAME) as run:
        for step in range(10):
            run.set_step(step)
            run.scalar("a", step)
            if step == 5:
                run.flush()
                backend.is_to_lose = True
            run.scalar("b", step)
        run.flush()
    assert not backend.is_to_lose
    assert backend.rewound == [first]
    for name in "ab":
        assert backend.run.points(name) == {step: step for step in range(10)}


@pytest.mark.parametrize("amends", [True, False])
def test_what_was_kept_behind_a_flush_in_mid_step_takes_nothing_of_before_on_a_resume(amends, config, monkeypatch):
    backend = Forgetful(amends)
    first = AccumulatingTracker(backend, AccumulatorConfig(**config | {"sync_every": 5, "flush_timeout": 0.3}))

    def down(*_):
        raise ConnectionError("down")

    with first.open(NAME) as run:
        for step in range(10):
            run.set_step(step)
            run.scalar("a", step)
            if step == 5:
                run.flush()
                monkeypatch.setattr(ForgetfulRun, "scalar", down)
            run.scalar("b", step)
    assert first.report.undelivered > 0
    monkeypatch.undo()
    second = AccumulatingTracker(backend, AccumulatorConfig(**config | {"sync_every": 5}))
    second.load_state_dict(first.state_dict())
    with second.open(NAME) as run:
        run.set_step(10)
        run.scalar("a", 10)
    assert backend.run.points("a") == {step: step for step in range(11)}
    assert backend.run.points("b") == {step: step for step in range(10)}


def test_the_last_values_are_those_of_the_last_window_that_had_any(recorded, caplog):
    run = recorded(sync_every=2).tracker.start(NAME)
    run.scalar("loss", 0.5)
    for step in range(1, 9):
        run.set_step(step)
    run.finish(RuntimeError("boom"))
    assert "last values: loss 0.5 (step 0)" in caplog.text


def test_a_step_that_goes_on_is_held_back_where_it_cannot_be_amended(config):
    backend = Forgetful(amends=False)
    with AccumulatingTracker(backend, AccumulatorConfig(**config)).open(NAME) as run:
        run.set_step(1)
        run.scalar("a", 1.0)
        run.flush()
        assert backend.run.records == []
        run.scalar("a", 2.0)
        run.flush()
        assert backend.run.records == []
        run.set_step(2)
        run.flush()
        assert [(record.step, record.value) for record in backend.run.records] == [(1, 1.5)]


def test_a_call_of_the_backend_is_made_behind_the_windows_that_were_complete(recorded, monkeypatch):
    tracker, go, wait = recorded(sync_every=2), threading.Event(), Window.wait

    def wait_for_the_copy(window):
        go.wait(10)
        return wait(window)

    monkeypatch.setattr(Window, "wait", wait_for_the_copy)
    with tracker.open() as run:
        for step in range(5):
            run.set_step(step)
            run.scalar("a", step)
        (future,) = run.backend(lambda its: [record.step for record in its.records]).values()
        go.set()
        assert future.result(10) == [0, 1, 2, 3]


def test_a_call_behind_a_device_that_hangs_is_cancelled_at_the_end(recorded, monkeypatch):
    go, wait = threading.Event(), Window.wait
    monkeypatch.setattr(Window, "wait", lambda window: go.wait(30) and wait(window))
    with recorded(sync_every=2, flush_timeout=0.2).open() as run:
        run.scalar("a", 1.0)
        run.set_step(2)
        run.set_step(4)
        (future,) = run.backend(lambda its: None).values()
    assert future.cancelled()
    go.set()


@pytest.mark.parametrize("moment", ["_end_thread", "close_all", "close"])
def test_a_call_that_comes_while_the_run_closes_is_made_or_cancelled(recorded, monkeypatch, moment):
    owner, recording = pipeline_module if moment == "close_all" else Pipeline, recorded()
    futures, original = [], getattr(owner, moment)

    def beside(*arguments):
        pipeline = recording.tracker._pipeline
        futures.extend(pipeline.call(None, lambda its: "made", {}).values())
        original(*arguments)
        futures.extend(pipeline.call(None, lambda its: "too late", {}).values())

    monkeypatch.setattr(owner, moment, beside)
    with recording.open() as run:
        run.scalar("a", 1.0)
    assert len(futures) == 2
    assert all(future.done() for future in futures)
    assert futures[1].cancelled()
    assert futures[0].cancelled() == (moment == "close_all")


def test_a_backend_that_is_none_of_the_runs_is_refused_by_name(tmp_path, config):
    children = [JsonlTrackerConfig(path=tmp_path / name) for name in "ab"]
    tracker = tracker_from_config(MultiConfig(trackers=children, accumulator=AccumulatorConfig(**config)))
    with tracker.open(NAME) as run:
        assert list(run.backend(lambda its: None, "1-jsonl")) == ["1-jsonl"]
        with pytest.raises(TrackerValueError, match=r"'jsonl'.*this run has '0-jsonl', '1-jsonl'"):
            run.backend(lambda its: None, "jsonl")


@pytest.fixture
def passes(monkeypatch):
    """The windows of each pass of the collector, which after its first one takes nothing unless it is asked to."""
    taken, take = [], Assembly.take

    def note(assembly, windows):
        taken.append([window.index for window in windows])
        return take(assembly, windows)

    monkeypatch.setattr(Assembly, "take", note)
    monkeypatch.setattr(pipeline_module, "_REST_SECONDS", 600.0)
    return taken


WHO_ASKS = {
    "flush": lambda tracker, run: run.flush(),
    "state": lambda tracker, run: tracker.tracker.state_dict(),
    "call": lambda tracker, run: [future.result(10) for future in run.backend(lambda its: None).values()],
    "end": lambda tracker, run: run.finish(),
}


@pytest.mark.parametrize("who", WHO_ASKS)
def test_windows_that_come_soon_are_taken_in_one_pass_and_at_once_if_somebody_asks(who, recorded, passes):
    tracker = recorded(sync_every=2)
    with tracker.open() as run:
        for step in range(12):
            run.set_step(step)
            run.scalar("a", step)
        run.set_step(12)
        WHO_ASKS[who](tracker, run)
        assert [index for one in passes for index in one][:6] == list(range(6))
        assert len(passes) <= (3 if who == "end" else 2)  # the last window is sent after a state was taken
        assert tracker.run.points("a") == {step: step for step in range(12)}


def everything(recorded):
    """Log what windows can differ in; return the records, and what was not finite."""
    tracker, seconds = recorded(sync_every=2), itertools.count()
    with tracker.open() as run:
        run.clock.seconds = lambda: float(next(seconds))
        for step in range(24):
            run.set_step(step)
            run.scalar("all", step)
            run.scalar("spread", -step, scope="spread")
            if step > 7:
                run.scalar("later", math.nan if step == 9 else 1.0, {"of": "some"}, reduce="max")
            if step % 5 == 0:
                run.bins("values", torch.tensor([step, math.inf if step > 9 else 0.0]))
            if step % 6 == 0:
                run.log_at(step + 3, {"all": -1.0, "late": step})
                run.rate("tokens", 2)
            if step == 13:
                run.flush()
                run.scalar("all", 99.0)
                run.bins("values", torch.ones(3))
    return tracker.run.records, tracker.tracker.report.nonfinite


def test_windows_that_are_taken_together_bring_what_they_would_bring_one_by_one(recorded, passes, monkeypatch):
    together = everything(recorded)
    assert max(map(len, passes)) > 2
    monkeypatch.setattr(Assembly, "group", lambda assembly, windows: windows[:1])
    records, found = everything(recorded)
    newest = [
        {(one.name, *one.context.items(), one.step): repr(one.value) for one in run} for run in (together[0], records)
    ]
    assert newest[0] == newest[1]
    assert together[1] == found


@pytest.mark.parametrize("before", ["nothing", "a value", "a histogram"])
def test_a_window_in_which_nothing_was_logged_costs_nothing(before, recorded, passes):
    tracker = recorded(sync_every=2)
    with tracker.open() as run:
        if before == "a value":
            run.scalar("a", 1.0)
        if before == "a histogram":
            run.bins("b", torch.ones(2))
        run.set_step(2)
        run.set_step(3)
        tracker.tracker.state_dict()
        for step in range(4, 40):
            run.set_step(step)
        tracker.tracker.state_dict()
        assert sum(map(len, passes)) == tracker.tracker.copies == (before != "nothing")
        run.bins("b", torch.ones(3))
        run.set_step(41)
        run.scalar("c", 3.0)
        for step in range(42, 46):
            run.set_step(step)
    assert tracker.run.points("c") == {41: 3.0}
    assert tracker.run.histograms("b")[39].count == 3
    assert len(tracker.run.records) == 2 + (before != "nothing")


def test_an_empty_window_ends_a_step_that_was_held_back_and_reaches_one_that_is_waited_for(config):
    backend = Forgetful(amends=False)
    tracker = AccumulatingTracker(backend, AccumulatorConfig(**config))
    with tracker.open(NAME) as run:
        run.set_step(1)
        run.scalar("a", 1.0)
        run.log_at(9, {"b": 2.0})
        run.flush()
        for step in range(2, 14):
            run.set_step(step)
        tracker.state_dict()
        assert [(record.name, record.step) for record in backend.run.records] == [("a", 1), ("b", 9)]


def test_a_window_that_is_lost_takes_no_other_of_its_pass_along(recorded, passes, monkeypatch):
    read = Window.wait

    def wait(window):
        if window.index == 2:
            raise MemoryError("full")
        return read(window)

    monkeypatch.setattr(Window, "wait", wait)
    tracker = recorded(sync_every=2)
    with tracker.open() as run:
        for step in range(12):
            run.set_step(step)
            run.scalar("a", step)
        run.set_step(12)
        run.flush()
    assert any(2 in one and len(one) > 2 for one in passes)
    assert tracker.run.points("a") == {step: step for step in range(12) if step not in (4, 5)}
    assert tracker.tracker.report.unread == 1


def test_windows_that_wait_for_a_pass_are_few(recorded, passes, monkeypatch):
    tracker = recorded(sync_every=1)
    with tracker.open() as run:
        staging = run.buffers.staging
        monkeypatch.setattr(window_module, "_MOST_HOST_BYTES", 8 * 8 * staging._numbers)
        monkeypatch.setattr(staging, "_most", 8)
        for step in range(100):
            run.set_step(step)
            run.scalar("a", step)
        assert staging._buffers <= 8
    assert tracker.tracker.report.unread == 0
    assert tracker.run.points("a") == {step: step for step in range(100)}


def test_who_sends_meanwhile_takes_no_window_away(recorded):
    """Another thread that calls the backend, or a signal handler that takes a state."""
    tracker = recorded(sync_every=1)
    with tracker.open() as run:
        pipeline = run._pipeline

        class Meanwhile(deque):
            is_first = True

            def append(self, window):
                super().append(window)
                if self.is_first:
                    self.is_first = False
                    pipeline.send()

        pipeline._pending = Meanwhile()
        for step in range(5):
            run.set_step(step)
            run.scalar("a", step)
    assert tracker.run.points("a") == {step: step for step in range(5)}
    assert tracker.tracker.report.unread == 0


def test_a_disk_that_hangs_holds_nobody_for_ever(recorded, monkeypatch, caplog):
    released = threading.Event()

    def down(*_):
        raise ConnectionError("down")

    def hang(*_):
        released.wait()
        return []

    monkeypatch.setattr(RecordingRun, "scalar", down)
    monkeypatch.setattr(Backlog, "put", hang)
    monkeypatch.setattr(bounded_module, "_DISK_SECONDS", 0.1)
    tracker = recorded(sync_every=2, flush_timeout=0.2).tracker

    def train():
        with tracker.open(NAME) as run:
            for step in range(4):
                run.set_step(step)
                run.scalar("a", step)
            run.flush()
            tracker.state_dict()

    training = threading.Thread(target=train, daemon=True)
    training.start()
    training.join(60)
    is_over = not training.is_alive()
    released.set()
    training.join(60)
    assert is_over
    assert "the disk of the backlog has hung" in caplog.text
    assert tracker.report.undelivered > 0
