"""Opening and leaving a run, whatever happens in between: resumed where it stood, left in bounded time, once."""

import errno
import math
import os
import queue
import shutil
import sys
import threading
import time
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from lives import Files, Recordings, content, program

from d9d_tracker import AccumulatingTracker, AccumulatorConfig, RunConfig, TrackerValueError
from d9d_tracker import testing as testing_module
from d9d_tracker.accumulator import run as run_module
from d9d_tracker.bank import buffers as buffers_module
from d9d_tracker.bank.staging import Staging, Window
from d9d_tracker.delivery.backlog import Backlog
from d9d_tracker.pipeline import pipeline as pipeline_module
from d9d_tracker.pipeline.assembly import Assembly
from d9d_tracker.pipeline.pipeline import Pipeline
from d9d_tracker.testing import RecordingRun, RecordingTracker

NAME = RunConfig(name="run")


def play(tracker, calls):
    with tracker.open(NAME) as run:
        for call in calls:
            call(run)


def logging(name, step):
    return [lambda run: run.set_step(step), lambda run: run.scalar(name, step)]


class Difficult(RecordingTracker):
    """A recording backend that fails or hangs where it is told to."""

    def __init__(self):
        super().__init__()
        self.raises_in: dict[str, BaseException] = {}
        self.holds: dict[str, threading.Event] = {}
        self.reached = threading.Event()

    def at(self, place):
        self.reached.set()
        if place in self.holds:
            self.holds[place].wait()
        if place in self.raises_in:
            raise self.raises_in[place]

    @contextmanager
    def open(self, properties):
        self.at("open")
        with super().open(properties) as run:
            difficult = DifficultRun(self, run)
            try:
                yield difficult
            finally:
                self.at("close")


class DifficultRun(RecordingRun):
    def __init__(self, tracker, run):
        super().__init__(run.properties)
        self.records = run.records
        self._tracker = tracker

    def scalar(self, name, value, context=None):
        self._tracker.at("scalar")
        super().scalar(name, value, context)

    def rewind(self, step):
        self._tracker.at("rewind")
        super().rewind(step)


@pytest.fixture
def backend():
    backend = Difficult()
    yield backend
    for event in backend.holds.values():
        event.set()


def over(backend, config, **changes):
    return AccumulatingTracker(backend, AccumulatorConfig(**config | changes))


def test_a_second_open_is_refused_and_after_leaving_it_is_another_run(config, tmp_path):
    backend = Recordings(tmp_path)
    tracker = backend.tracker(**config)
    with tracker.open(NAME) as run:
        first = tracker.run_id
        run.scalar("a", 1.0)
        with pytest.raises(TrackerValueError, match="is open"), tracker.open(NAME):
            pass
        with pytest.raises(TrackerValueError, match="load before"):
            tracker.load_state_dict(tracker.state_dict())
    with tracker.open(NAME) as run:
        assert tracker.run_id != first
        run.scalar("b", 2.0)
    assert [[r.name for r in run.records] for run in backend.runs.values()] == [["a"], ["b"]]


@pytest.mark.parametrize("place", ["open", "rewind"])
def test_an_open_that_fails_can_be_tried_again_with_the_same_state(place, backend, config):
    calls = program()
    first = over(backend, config)
    with first.open(NAME) as run:
        for call in calls[:20]:
            call(run)
        state = first.state_dict()
    second = over(backend, config)
    second.load_state_dict(state)
    backend.raises_in[place] = RuntimeError("not yet")
    with pytest.raises(RuntimeError, match="not yet"), second.open(NAME):
        pytest.fail("opened")
    backend.raises_in.clear()
    play(second, calls[20:])
    whole = over(RecordingTracker(), config)
    play(whole, calls)
    assert second.run_id == first.run_id
    assert content(backend.run.records) == content(whole._tracker.run.records)


@pytest.mark.parametrize("error", [RuntimeError("crash"), KeyboardInterrupt(), SystemExit(3)])
def test_leaving_by_an_exception_writes_everything_and_raises_it(error, config, tmp_path):
    backend = Recordings(tmp_path)
    calls = [call for step in range(6) for call in logging("a", step)]

    def fail(run):
        raise error

    with pytest.raises(type(error)) as caught:
        play(backend.tracker(**config), [*calls, fail])
    assert caught.value is error
    assert [r.step for r in backend.records()] == list(range(6))


def test_a_backend_that_fails_to_close_is_reported(backend, config, caplog):
    backend.raises_in["close"] = OSError("disk on fire")
    with over(backend, config).open(NAME) as run:
        run.scalar("a", 1.0)
    assert "failed to close: OSError('disk on fire')" in caplog.text
    assert len(backend.run.records) == 1


@pytest.mark.parametrize("place", ["scalar", "close"])
def test_leaving_is_bounded_when_the_backend_hangs(place, backend, config, caplog):
    backend.holds[place] = threading.Event()
    tracker = over(backend, config, flush_timeout=0.1)
    with tracker.open(NAME) as run:
        run.scalar("a", 1.0)
    assert not backend.holds[place].is_set()
    assert "left to close in the background" in caplog.text
    assert tracker.report.undelivered == (place == "scalar")


def test_a_hanging_backend_is_closed_when_it_stops_hanging(backend, config):
    backend.holds["scalar"] = threading.Event()
    with over(backend, config, flush_timeout=0.1).open(NAME) as run:
        run.scalar("a", 1.0)
    backend.reached.clear()
    backend.holds["scalar"].set()
    assert backend.reached.wait(10)


def test_a_second_interruption_while_leaving_keeps_what_is_in_memory(backend, config, monkeypatch):
    tracker = over(backend, config)
    backend.holds["scalar"] = threading.Event()
    monkeypatch.setattr(Pipeline, "close", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        play(tracker, [call for step in range(5) for call in logging("a", step)])
    monkeypatch.undo()
    assert tracker.report.undelivered == 4
    assert len(list(config["backlog_dir"].glob("*.sqlite3"))) == 1
    backend.holds["scalar"].set()
    play(tracker, [])  # the tracker is not stuck


def test_a_state_taken_after_leaving_holds_although_the_backend_was_down(backend, config):
    calls = program()
    backend.raises_in["scalar"] = ConnectionError("gone")
    first = over(backend, config, flush_timeout=0.2)
    play(first, calls[:30])
    state = first.state_dict()
    assert first.report.undelivered > 0
    backend.raises_in.clear()
    second = over(backend, config)
    second.load_state_dict(state)
    play(second, calls[30:])
    whole = over(RecordingTracker(), config)
    play(whole, calls)
    assert content(backend.run.records) == content(whole._tracker.run.records)
    assert list(config["backlog_dir"].iterdir()) == []


def test_a_kill_between_delivery_and_forgetting_doubles_nothing(backend, config, tmp_path):
    calls = program(flush_in=())
    backend.raises_in["scalar"] = ConnectionError("gone")
    first = over(backend, config)
    with first.open(NAME) as run:
        for call in calls[:30]:
            call(run)
        state = first.state_dict()
        shutil.copytree(config["backlog_dir"], tmp_path / "copy")
        backend.raises_in.clear()
        run.flush()
    delivered = [r.step for r in backend.run.records]
    assert delivered
    shutil.rmtree(config["backlog_dir"])
    (tmp_path / "copy").rename(config["backlog_dir"])
    second = over(backend, config)
    second.load_state_dict(state)
    play(second, calls[30:])
    whole = over(RecordingTracker(), config)
    play(whole, calls)
    assert content(backend.run.records) == content(whole._tracker.run.records)
    assert len(backend.run.records) == len(whole._tracker.run.records)


def test_a_backlog_that_did_not_come_along_is_missed_loudly(backend, config, caplog):
    backend.raises_in["scalar"] = ConnectionError("gone")
    first = over(backend, config, flush_timeout=0.2)
    play(first, program()[:30])
    shutil.rmtree(config["backlog_dir"])
    second = over(backend, config)
    second.load_state_dict(first.state_dict())
    backend.raises_in.clear()
    caplog.clear()
    play(second, [])
    assert "their backlog" in caplog.text
    assert "is not here" in caplog.text


def interrupt_at(line_number):
    """Raise KeyboardInterrupt before the n-th line of the code that ends a step, as a signal handler would."""
    seen = 0
    files = {module.__file__ for module in (buffers_module, run_module, pipeline_module, queue, threading)}

    def trace(frame, event, _):
        nonlocal seen
        if frame.f_code.co_filename not in files or frame.f_code.co_name in ("scalar", "scalars", "bins", "flush"):
            return None
        if event == "line":
            seen += 1
            if seen == line_number:
                raise KeyboardInterrupt
        return trace

    return trace


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("sync_every", [2, 3])
@pytest.mark.parametrize("resolution", ["step", "window"])
def test_interrupted_at_any_line_of_set_step_every_value_is_written_once(
    resolution, sync_every, goes_on, config, tmp_path
):
    config |= {"sync_every": sync_every, "scalar_resolution": resolution}
    interruptions = 0
    for line_number in range(1, 200):
        backend = Recordings(tmp_path)
        tracker = backend.tracker(**config)
        interrupted = False
        with tracker.open(NAME) as run:
            for step in range(3):
                run.set_step(step)
                run.scalar("sum", 1.0, reduce="sum")
            sys.settrace(interrupt_at(line_number))
            try:
                run.set_step(3)
            except KeyboardInterrupt:
                interrupted = True
            finally:
                sys.settrace(None)
            if goes_on:
                run.scalar("sum", 1.0, reduce="sum")
        assert sum(r.value for r in backend.records()) == 3.0 + goes_on, f"line {line_number}"
        if not interrupted:
            break
        interruptions += 1
    assert interruptions > 10


def test_a_second_job_that_resumes_the_run_is_refused(config, tmp_path):
    backend = Files(tmp_path)
    tracker = backend.tracker(**config)
    play(tracker, program())
    state = tracker.state_dict()
    second = backend.tracker(**config)
    second.load_state_dict(state)
    tracker.load_state_dict(state)
    with tracker.open(NAME), pytest.raises(RuntimeError, match="another job"), second.open(NAME):
        pytest.fail("opened")
    play(second, [])  # it may when the first has left


class Disk:
    """A disk that is full from now on, until there is room again."""

    def __init__(self, monkeypatch):
        self.full = False
        self._pwrite = os.pwrite
        monkeypatch.setattr(os, "pwrite", self.pwrite)

    def pwrite(self, file, data, position):
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._pwrite(file, data, position)


def test_a_full_disk_costs_nothing_once_there_is_room_again(config, tmp_path, monkeypatch, caplog):
    disk, backend = Disk(monkeypatch), Files(tmp_path / "a")
    calls = program(flush_in=())
    tracker = backend.tracker(**config)
    with tracker.open(NAME) as run:
        for number, call in enumerate(calls):
            disk.full = 20 < number < len(calls) - 10
            if number == len(calls) - 11:  # the delivery has met the full disk before there is room again
                while not tracker.report.failures:
                    time.sleep(0.01)
            call(run)
    whole = Files(tmp_path / "b")
    play(whole.tracker(**config), calls)
    assert backend.lines() == whole.lines()
    assert "No space left" in caplog.text


def test_a_disk_that_stays_full_leaves_the_rest_for_the_next_process(config, tmp_path, monkeypatch):
    disk, backend = Disk(monkeypatch), Files(tmp_path / "a")
    calls = program(flush_in=())
    first = backend.tracker(**config | {"flush_timeout": 0.3})
    with first.open(NAME) as run:
        for number, call in enumerate(calls):
            disk.full = number > 20
            call(run)
    assert first.report.undelivered > 0
    disk.full = False
    second = backend.tracker(**config)
    second.load_state_dict(first.state_dict())
    play(second, [])
    whole = Files(tmp_path / "b")
    play(whole.tracker(**config), calls)
    assert backend.lines() == whole.lines()


def test_a_folder_that_vanished_is_written_anew_once_it_is_back(config, tmp_path, caplog):
    backend = Files(tmp_path / "a")
    calls = program(flush_in=())
    tracker = backend.tracker(**config)
    with tracker.open(NAME) as run:
        for number, call in enumerate(calls):
            if number == 25:
                shutil.rmtree(backend.folder)
            call(run)
        tracker.state_dict()  # what left the device is in the backlog
        backend.folder.mkdir()
    whole = Files(tmp_path / "b")
    play(whole.tracker(**config), calls)
    assert backend.lines() == whole.lines()
    assert "bring the folder back" in caplog.text


def test_a_backend_that_is_down_at_open_gets_its_run_when_it_is_back(backend, config, caplog):
    calls = program()
    backend.raises_in["open"] = ConnectionError("no route to host")
    tracker = over(backend, config, flush_timeout=2.0)  # which a call of these first ones waits in vain
    with tracker.open(NAME) as run:
        for call in calls[:30]:
            call(run)
        assert not backend.runs
        backend.raises_in.clear()
        for call in calls[30:]:
            call(run)
    whole = over(RecordingTracker(), config)
    play(whole, calls)
    assert caplog.text.count("no route to host") == 1
    assert content(backend.run.records) == content(whole._tracker.run.records)
    assert tracker.run_id == backend.run_id
    assert list(config["backlog_dir"].iterdir()) == []


def test_a_run_whose_backend_was_never_there_is_gone_on_with(backend, config):
    calls = program()
    backend.raises_in["open"] = ConnectionError("no route to host")
    first = over(backend, config, flush_timeout=0.2)
    play(first, calls[:30])
    assert first.report.undelivered > 0
    backend.raises_in.clear()
    second = over(backend, config)
    second.load_state_dict(first.state_dict())
    play(second, calls[30:])
    whole = over(RecordingTracker(), config)
    play(whole, calls)
    assert content(backend.run.records) == content(whole._tracker.run.records)
    assert len(backend.runs) == 1


def test_a_new_run_gets_nothing_of_an_earlier_one_of_the_same_id(backend, config, monkeypatch):
    monkeypatch.setattr(testing_module, "uuid4", lambda: mock.Mock(hex="the same"))
    backend.raises_in["scalar"] = ConnectionError("gone")
    play(over(backend, config, flush_timeout=0.2), logging("a", 1))
    backend.raises_in.clear()
    backend.runs.clear()
    play(over(backend, config), logging("a", 2))
    assert backend.run.points("a") == {2: 2.0}
    assert len(list(config["backlog_dir"].glob("*.sqlite3"))) == 1


def test_leaving_is_bounded_when_the_device_hangs(backend, config, monkeypatch, caplog):
    never = threading.Event()
    monkeypatch.setattr(Window, "wait", lambda self: never.wait())
    tracker = over(backend, config, flush_timeout=0.2)
    with tracker.open(NAME) as run:
        for step in range(9):
            run.set_step(step)
            run.scalar("a", 1.0)
        run.flush()
    assert tracker.report.unread == 4  # two full ones, the flushed and the last
    assert "lost, because not read in time: 4 windows of steps 0 to 8" in caplog.text
    never.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_leaving_is_bounded_when_the_collector_has_died(backend, config, monkeypatch, caplog):
    monkeypatch.setattr(Assembly, "take", lambda *_: sys.exit())
    tracker = over(backend, config, flush_timeout=1000.0)
    with tracker.open(NAME) as run:
        for step in range(9):
            run.set_step(step)
        run.flush()
        tracker.state_dict()
    assert "still not read" in caplog.text


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_running_out_of_memory_at_a_swap_loses_that_window_and_nothing_else(error, config, monkeypatch, caplog):
    backend, failing = RecordingTracker(), {1}
    copy = Staging.copy

    def fail(*arguments):
        if tracker._run.buffers.clock.windows in failing:
            raise error
        return copy(*arguments)

    monkeypatch.setattr(Staging, "copy", fail)
    tracker = over(backend, config)
    play(tracker, [call for step in range(12) for call in logging("a", step)])
    assert backend.run.points("a") == {step: float(step) for step in range(12) if step // 4 != 1}
    assert tracker.report.unread == 1
    assert "window 1 (steps [4, 5, 6, 7]) is lost" in caplog.text


def test_threads_that_log_beside_the_training_lose_nothing(config):
    tracker = over(RecordingTracker(), config)
    done, counts = threading.Event(), [0, 0]

    def beside(number, run):
        while not done.is_set():
            run.scalar(f"thread {number}", 1.0, reduce="sum")
            run.bins(f"bins {number}", torch.ones(2))
            counts[number] += 1

    with tracker.open(NAME) as run:
        threads = [threading.Thread(target=beside, args=(number, run)) for number in range(2)]
        for thread in threads:
            thread.start()
        for step in range(400):
            run.set_step(step)
            run.scalar("loss", 1.0)
        done.set()
        for thread in threads:
            thread.join()
    records = tracker._tracker.run
    for number in range(2):
        assert sum(records.points(f"thread {number}").values()) == counts[number]
        assert sum(histogram.count for histogram in records.histograms(f"bins {number}").values()) == 2 * counts[number]
    assert len(records.points("loss")) == 400


def test_what_a_full_disk_could_not_forget_takes_nothing_back_in_the_next_life(backend, config, monkeypatch):
    calls = [call for step in range(17) for call in logging("a", step)]
    backend.raises_in["scalar"] = ConnectionError("gone")
    first = over(backend, config)

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with first.open(NAME) as run:
        for call in calls[:18]:
            call(run)
        first.state_dict()
        for what in ("put", "_delete"):  # it can still be read
            monkeypatch.setattr(Backlog, what, refuse)
        backend.raises_in.clear()
        for call in calls[18:]:
            call(run)
    monkeypatch.undo()
    second = over(backend, config)
    second.load_state_dict(first.state_dict())
    play(second, [])
    assert backend.run.points("a") == {step: step for step in range(17)}


def test_names_and_tags_that_utf8_cannot_encode_are_in_a_state(config, tmp_path, caplog):
    caplog.set_level("CRITICAL", "d9d_tracker")  # what is captured is sent from worker to worker, as UTF-8
    backend, name = Recordings(tmp_path), os.fsdecode(b"file \xff")
    first = backend.tracker(**config)
    with first.open(NAME) as run:
        run.scalar(name, math.nan, {"of": name})
        state = first.state_dict()
        run.flush()
        flushed = first.state_dict()
    for one in (state, flushed, first.state_dict()):
        second = backend.tracker(**config)
        second.load_state_dict(one)
        with second.open(NAME) as run:
            run.scalar(name, 1.0, {"of": name})
        assert [math.isnan(record.value) for record in backend.records() if record.name == name][-1]


def test_a_wait_without_an_end_is_refused(config):
    for name in ("flush_timeout", "distributed_timeout"):
        with pytest.raises(ValueError, match=rf"{name}\n.*less than or equal to 1000000000"):
            AccumulatorConfig(**config | {name: math.inf})
