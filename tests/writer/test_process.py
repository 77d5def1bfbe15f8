"""A backend in a process of its own gives what a thread gives, and is no danger to the training or to its points."""

import contextlib
import json
import multiprocessing
import os
import threading
import time
from pathlib import Path

import actions
import pytest
import torch
import troubled
from pydantic import SecretStr

from d9d_tracker import AccumulatorConfig, RunConfig, TrackerTypeError, read, register_backend, tracker_from_config
from d9d_tracker.testing import RecordingTracker

register_backend(troubled.TroubledConfig, troubled.TroubledTracker)
register_backend(troubled.SecretConfig, troubled.TroubledTracker)


def make(folder, **accumulator):
    defaults = {"device": "cpu", "sync_every": 5, "backlog_dir": folder / "backlog", "writer": "process"}
    config = AccumulatorConfig(**{**defaults, **accumulator})
    return tracker_from_config(troubled.TroubledConfig(path=folder, accumulator=config))


def log(run, names, steps=range(20)):
    for step in steps:
        run.set_step(step)
        for name in names:
            run.scalar(name, step + 0.5)
        run.bins("values", torch.arange(step + 1.0))


def points(folder: Path) -> list:
    lines = [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("time", None)
    return [line for line in lines if line["type"] != "end"]


def curve(folder: Path, name: str) -> list[float]:
    (stored,) = read(folder / "run.jsonl")
    return stored.scalars(name).values.tolist()


def test_it_writes_what_a_thread_writes(tmp_path):
    for writer in ("thread", "process"):
        tracker = make(tmp_path / writer, writer=writer)
        with tracker.open(RunConfig(name="run", description="a run", hparams={"lr": 0.1, "path": Path("x")})) as run:
            log(run, ["loss", "ä"])
            run.flush()
            run.log_at(3, {"late": 1.0})
            run.add_hparams({"more": float("nan")})
            log(run, ["loss"], range(20, 23))
        assert tracker.report.delivered == 20 * 2 + 3 + 5 + 1  # histograms: one a window; and what came late
        assert tracker.run_id == "run"
    assert sorted(map(str, points(tmp_path / "process"))) == sorted(map(str, points(tmp_path / "thread")))
    assert not (tmp_path / "process" / "backlog").exists()
    assert (tmp_path / "process" / "heavy").read_text() == ""  # what a writer costs is its SDK, not another torch


def test_a_state_goes_on_in_either(tmp_path):
    state = None
    for writer, steps in (("process", range(8)), ("thread", range(5, 12)), ("process", range(9, 15))):
        tracker = make(tmp_path, writer=writer)
        if state is not None:
            tracker.load_state_dict(state)
        with tracker.open(RunConfig(name="run")) as run:
            for step in steps:
                if step == steps.stop - 3:
                    state = tracker.state_dict()
                run.set_step(step)
                run.scalar("loss", float(step))
    assert curve(tmp_path, "loss") == list(range(15))


@pytest.mark.parametrize("trouble", ["crash", "down"])
def test_a_backend_that_dies_or_fails_in_a_window_loses_and_doubles_nothing(tmp_path, trouble, caplog):
    tracker = make(tmp_path)
    with tracker.open(RunConfig(name="run")) as run:
        log(run, ["before", trouble, "after"])
    assert (tmp_path / f"once-{trouble}").exists()
    assert tracker.report.undelivered == 0
    assert tracker.report.delivered == 20 * 3 + 4
    for name in ("before", trouble, "after"):
        assert curve(tmp_path, name) == [step + 0.5 for step in range(20)]
    assert tracker.report.failures == 1
    if trouble == "crash":  # what fails by itself is tried again at once
        assert sum("has died (code=3)" in message for message in caplog.messages) == 1
        assert any("is back after" in message for message in caplog.messages)


def test_a_backend_that_fails_in_a_window_and_then_dies_gets_all_of_it_again(tmp_path, caplog):
    tracker = make(tmp_path)
    with tracker.open(RunConfig(name="run")) as run:
        (tmp_path / "breaks").touch()
        log(run, ["a", "b"])
    assert not (tmp_path / "breaks").exists()
    assert tracker.report.undelivered == 0
    for name in "ab":
        assert curve(tmp_path, name) == [step + 0.5 for step in range(20)]
    assert any("has died (code=3)" in message or "down for all" in message for message in caplog.messages)


def test_a_window_that_was_stored_before_its_writer_died_is_not_stored_twice(tmp_path):
    tracker = make(tmp_path)
    with tracker.open(RunConfig(name="run")) as run:
        (tmp_path / "dies stored").touch()
        log(run, ["loss"])
    assert not (tmp_path / "dies stored").exists()
    assert len(points(tmp_path)) == 1 + 20 + 4
    assert curve(tmp_path, "loss") == [step + 0.5 for step in range(20)]


def test_a_backend_that_hangs_is_left_in_time_and_what_it_has_not_taken_is_kept(tmp_path, caplog):
    tracker = make(tmp_path, flush_timeout=1.0)
    with tracker.open(RunConfig(name="run")) as run:
        log(run, ["slow"], range(6))
        _wait(lambda: (tmp_path / "slow").exists())
        time.sleep(1.5)
        log(run, ["slow"], range(6, 12))
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert "it has not returned from a call for 1 s" in caplog.text
    assert "is left to close in the background" not in caplog.text
    assert tracker.report.undelivered == 12 + 3
    (tmp_path / "go").touch()
    state = tracker.state_dict()
    tracker = make(tmp_path)
    tracker.load_state_dict(state)
    with tracker.open(RunConfig(name="run")):
        pass
    assert len(points(tmp_path)) == 1 + 12 + 3
    assert curve(tmp_path, "slow") == [step + 0.5 for step in range(12)]


def test_an_error_of_a_connection_is_the_backends_and_no_death_of_the_writer(tmp_path, caplog):
    tracker = make(tmp_path)
    with tracker.open(RunConfig(name="run")) as run:
        (tmp_path / "reset").touch()
        log(run, ["loss"])
    assert tracker.report.failures == 1
    assert curve(tmp_path, "loss") == [step + 0.5 for step in range(20)]
    assert len((tmp_path / "writers").read_text().splitlines()) == 1
    assert "the server's, not the writer's" in caplog.text


def test_what_it_refuses_is_named_and_counted_here(tmp_path, caplog):
    tracker = make(tmp_path)
    with tracker.open(RunConfig(name="run")) as run:
        log(run, ["loss", "refused", "after"])
    assert tracker.report.refused == {"refused": 20}
    assert tracker.report.delivered == 20 * 2 + 4
    assert any("the backend refused refused at step 0: ValueError('no such thing')" in m for m in caplog.messages)
    assert curve(tmp_path, "after") == [step + 0.5 for step in range(20)]


def test_what_it_raises_on_opening_is_raised_here(tmp_path):
    with pytest.raises(ValueError, match="a wrong configuration"), make(tmp_path).open(RunConfig(name="wrong")):
        pass


@pytest.mark.parametrize("error", [None, RuntimeError("boom"), KeyboardInterrupt()], ids=repr)
def test_the_backend_is_told_how_the_run_ended(tmp_path, error):
    with contextlib.suppress(RuntimeError, KeyboardInterrupt), make(tmp_path).open(RunConfig(name="run")) as run:
        log(run, ["loss"])
        if error is not None:
            raise error
    assert (tmp_path / "ended").read_text() == repr(error)
    assert curve(tmp_path, "loss") == [step + 0.5 for step in range(20)]


def heavy(folder, **accumulator):
    return make(folder, **{"writer": "auto", **accumulator})


@pytest.fixture
def is_heavy(monkeypatch):
    monkeypatch.setattr(troubled.TroubledTracker, "is_heavy", True)


def writers(folder):
    return [int(line) for line in (folder / "writers").read_text().split()]


def test_by_default_a_backend_whose_sdk_is_heavy_is_in_a_process_and_others_are_on_a_thread(tmp_path, is_heavy):
    assert AccumulatorConfig().writer == "auto"
    for folder in (tmp_path / "heavy", tmp_path / "light"):
        with heavy(folder).open(RunConfig(name="run")) as run:
            log(run, ["loss"])
        troubled.TroubledTracker.is_heavy = False
    assert writers(tmp_path / "heavy") != [os.getpid()]
    assert writers(tmp_path / "light") == [os.getpid()]


@pytest.mark.parametrize("writer", ["thread", "auto", "process"])
def test_a_function_with_json_arguments_is_done_where_the_backend_is(tmp_path, is_heavy, writer):
    arguments = {"pixels": [[0.5, 1], [2, 3]], "text": "ä", "nothing": None}
    with heavy(tmp_path, writer=writer).open(RunConfig(name="run")) as run:
        log(run, ["loss"], range(5))
        (done,) = run.backend(actions.where, **arguments).values()
        (logged,) = run.backend(actions.log, step=3, late=1.5).values()
        (left,) = run.backend(actions.leave).values()
        assert done.result(60) == {"process": writers(tmp_path)[0], "id": "run", **arguments}
        assert logged.result(60) is None
        assert isinstance(left.exception(60), SystemExit)
        assert isinstance(run.backend(actions.unfold)[""].result(60), str if writer != "thread" else object)
        log(run, ["loss"], range(5, 10))
    assert len(writers(tmp_path)) == 1
    assert (writers(tmp_path) == [os.getpid()]) == (writer == "thread")
    assert curve(tmp_path, "loss") == [step + 0.5 for step in range(10)]
    assert curve(tmp_path, "late") == [1.5]


def test_a_writer_that_dies_of_an_action_ends_that_alone(tmp_path, is_heavy):
    with heavy(tmp_path).open(RunConfig(name="run")) as run:
        log(run, ["loss"], range(5))
        (died,) = run.backend(actions.die).values()
        log(run, ["loss"], range(5, 10))
        assert "has died (code=3)" in str(died.exception(60))
        assert run.backend(actions.where)[""].result(60)["process"] == writers(tmp_path)[1]
    assert curve(tmp_path, "loss") == [step + 0.5 for step in range(10)]


@pytest.mark.parametrize("is_sent", [True, False], ids=["lambda", "arguments"])
def test_what_cannot_be_sent_brings_the_backend_to_a_thread_and_says_what_to_do_instead(
    tmp_path, is_heavy, is_sent, caplog
):
    with heavy(tmp_path).open(RunConfig(name="run")) as run:
        log(run, ["loss"], range(7))
        if is_sent:
            futures = run.backend(lambda its: actions.where(its))
        else:
            futures = run.backend(actions.where, pixels=torch.zeros(2))
        assert futures[""].result(60)["process"] == os.getpid()
        log(run, ["loss"], range(7, 12))
        run.backend(lambda its: None)
    assert len(writers(tmp_path)) == 2
    assert writers(tmp_path)[1] == os.getpid()
    assert curve(tmp_path, "loss") == [step + 0.5 for step in range(12)]
    said = [message for message in caplog.messages if "goes on on a thread" in message]
    assert len(said) == 1
    assert ("pass a function of a module" if is_sent else "pixels=tensor([0., 0.]) is no JSON") in said[0]


def test_where_a_process_was_asked_for_what_cannot_be_sent_is_refused(tmp_path):
    with make(tmp_path).open(RunConfig(name="run")) as run:
        log(run, ["loss"], range(2))
        with pytest.raises(TrackerTypeError, match=r"<lambda> cannot be imported: pass a function of a module"):
            run.backend(lambda its: None)
        with pytest.raises(TrackerTypeError, match=r"path=.* is no JSON: pass numbers, text, lists"):
            run.backend(actions.where, path=tmp_path)
        with pytest.raises(TrackerTypeError, match="test_process"):
            run.backend(_defined_in("__main__"))


def _defined_in(module):
    def test_process(its):
        raise AssertionError("it was refused")

    test_process.__module__ = module
    test_process.__qualname__ = "test_process"
    return test_process


def test_a_backend_that_no_other_process_could_make_stays_on_a_thread(recorded, caplog):
    harness = recorded(writer="process")
    with harness.open() as run:
        run.set_step(0)
        run.scalar("loss", 1.0)
    assert [record.value for record in harness.run.records] == [1.0]
    assert isinstance(harness.backend, RecordingTracker)
    assert any("it stays on a thread" in message for message in caplog.messages)


def test_a_backend_with_a_secret_in_its_configuration_stays_on_a_thread(tmp_path, caplog):
    accumulator = AccumulatorConfig(device="cpu", backlog_dir=tmp_path / "backlog", writer="process")
    tracker = tracker_from_config(troubled.SecretConfig(path=tmp_path, accumulator=accumulator, token=SecretStr("x")))
    with tracker.open(RunConfig(name="run")) as run:
        log(run, ["loss"])
    assert (tmp_path / "writers").read_text().split() == [str(os.getpid())]
    assert curve(tmp_path, "loss") == [step + 0.5 for step in range(20)]
    assert any("have the SDK read it from the environment" in message for message in caplog.messages)


def live(folder):
    """A training that is to be killed, in its process."""
    tracker = make(folder)
    with tracker.open(RunConfig(name="run")) as run:
        torch.save(tracker.state_dict(), folder / "state.pt")
        log(run, ["slow"], range(5))
        run.set_step(5)
        time.sleep(60)


@pytest.mark.parametrize("goes_on", [None, "process", "thread"])
def test_what_had_reached_it_is_written_when_the_training_is_killed(tmp_path, goes_on):
    training = multiprocessing.get_context("forkserver").Process(target=live, args=(tmp_path,))
    training.start()
    try:
        _wait(lambda: (tmp_path / "slow").exists())
        (writer,) = _children(training.pid)
    finally:
        training.kill()
        training.join()
    assert _is_alive(writer)
    go = threading.Timer(3.0 if goes_on else 0.0, (tmp_path / "go").touch)  # by when the next life waits for it
    go.start()
    if goes_on:  # which takes nothing from under it
        tracker = make(tmp_path, writer=goes_on)
        tracker.load_state_dict(torch.load(tmp_path / "state.pt"))
        with tracker.open(RunConfig(name="run")) as run:
            assert (tmp_path / "ended").exists()
            log(run, ["slow"], range(5))
    _wait(lambda: not _is_alive(writer))
    if not goes_on:
        assert (tmp_path / "ended").read_text().startswith("ConnectionError(")
    assert curve(tmp_path, "slow") == [step + 0.5 for step in range(5)]
    assert len(points(tmp_path)) == 1 + 5 + 1


def _children(process: int) -> list[int]:
    found = [path.read_text().split() for path in Path(f"/proc/{process}/task").glob("*/children")]
    return [int(child) for children in found for child in children]


def _is_alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def _wait(is_so) -> None:
    deadline = time.monotonic() + 60
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_so()
