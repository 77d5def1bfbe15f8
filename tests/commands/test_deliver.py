"""A job that will not resume has left something behind: it is listed, and reaches its run, once."""

import contextlib
import os
import sqlite3
from types import SimpleNamespace

import pytest

from d9d_tracker import AccumulatorConfig, JsonlTrackerConfig, MultiConfig, RunConfig, read, tracker_from_config
from d9d_tracker.__main__ import main
from d9d_tracker.provider.jsonl import JsonlRun
from tests.run_files import read_run


@pytest.fixture
def left_behind(tmp_path, monkeypatch):
    """A run whose disk was full from some step on."""
    write = os.pwrite

    def full(*arguments):
        raise OSError(28, "No space left on device")

    def leave(config, name="job"):
        accumulator = AccumulatorConfig(sync_every=2, device="cpu", backlog_dir=tmp_path / "backlog", flush_timeout=0.3)
        tracker = tracker_from_config(config.model_copy(update={"accumulator": accumulator}))
        with tracker.open(RunConfig(name=name, hparams={"lr": 0.1})) as run:
            for step in range(10):
                if step == 4:
                    run.flush()
                    monkeypatch.setattr(os, "pwrite", full)
                run.set_step(step)
                run.scalar("loss", float(step), {"stage": "train"})
        monkeypatch.setattr(os, "pwrite", write)
        assert tracker.report.undelivered > 0
        return tracker

    return leave


def points(folder):
    (path,) = folder.glob("*.jsonl")
    return [(record.step, record.value) for record in read_run(path)[1]]


def test_what_was_left_is_listed_and_delivered_once(left_behind, tmp_path, capsys):
    left_behind(JsonlTrackerConfig(path=tmp_path / "runs"), name="job [/red]")
    assert len(points(tmp_path / "runs")) < 10
    backlog = ["deliver", "--backlog", str(tmp_path / "backlog")]
    assert main([*backlog, "--list"]) == 1
    printed = capsys.readouterr().out
    assert "waits" in printed
    assert "[/red]" in printed, "a name is no markup"
    assert main(backlog) == 0
    assert "delivered" in capsys.readouterr().out
    assert points(tmp_path / "runs") == [(step, float(step)) for step in range(10)]
    assert main(backlog) == 0
    assert "no backlog in" in capsys.readouterr().out


def test_each_of_several_backends_gets_its_own(left_behind, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    left_behind(MultiConfig(trackers=[JsonlTrackerConfig(path=folder) for folder in folders]))
    assert main(["deliver", "--backlog", str(tmp_path / "backlog")]) == 0
    for folder in folders:
        assert points(folder) == [(step, float(step)) for step in range(10)]


def test_what_still_cannot_be_delivered_stays(left_behind, tmp_path, capsys, monkeypatch):
    left_behind(JsonlTrackerConfig(path=tmp_path / "runs"))
    with monkeypatch.context() as patched:
        patched.setattr(JsonlRun, "sync", lambda self: (_ for _ in ()).throw(OSError("still full")))
        assert main(["deliver", "--backlog", str(tmp_path / "backlog"), "--timeout", "0.3"]) == 1
    assert "still wait" in capsys.readouterr().out
    assert main(["deliver", "--backlog", str(tmp_path / "backlog")]) == 0
    assert points(tmp_path / "runs") == [(step, float(step)) for step in range(10)]


def test_a_job_that_resumes_after_its_backlog_was_delivered_doubles_nothing(left_behind, tmp_path):
    tracker = left_behind(JsonlTrackerConfig(path=tmp_path / "runs"))
    state = tracker.state_dict()
    assert main(["deliver", "--backlog", str(tmp_path / "backlog")]) == 0
    tracker.load_state_dict(state)
    with tracker.open(RunConfig(name="job")) as run:
        run.set_step(10)
        run.scalar("loss", 10.0)
    assert points(tmp_path / "runs") == [(step, float(step)) for step in range(11)]


def test_a_run_that_another_job_writes_is_named_at_once(left_behind, tmp_path, capsys):
    config = JsonlTrackerConfig(path=tmp_path / "runs")
    run_id = left_behind(config).run_id
    tracker = tracker_from_config(config.model_copy(update={"accumulator": None}))
    tracker.load_state_dict({"run_id": run_id})
    backlog = ["deliver", "--backlog", str(tmp_path / "backlog"), "--timeout", "1000"]
    with tracker.open(RunConfig(name="job")):
        assert main(backlog) == 1
    said = "".join(capsys.readouterr().out.replace("\u2502", "").split())
    assert "recordsstillwait:RuntimeError:" in said
    assert "anotherjob" in said
    assert main(backlog) == 0


def test_a_run_that_could_not_be_opened_is_as_it_was_meant(tmp_path, monkeypatch):
    accumulator = AccumulatorConfig(device="cpu", backlog_dir=tmp_path / "backlog", flush_timeout=0.3)
    tracker = tracker_from_config(JsonlTrackerConfig(path=tmp_path / "runs", accumulator=accumulator))
    hparams = {"rates": {("layer", 0): SimpleNamespace(peak=0.1)}}
    with monkeypatch.context() as patched:
        patched.setattr(JsonlRun, "sync", lambda self: (_ for _ in ()).throw(OSError("full")))
        with tracker.open(RunConfig(name="job", hparams=hparams, started=5.0)) as run:
            run.scalar("loss", 1.0)
    assert main(["deliver", "--backlog", str(tmp_path / "backlog")]) == 0
    (run,) = read(tmp_path / "runs")
    assert (run.started, run.hparams) == (5.0, {"rates": {"('layer', 0)": {"peak": 0.1}}})


def test_what_a_later_life_has_written_stays(left_behind, tmp_path):
    """One that went on from a checkpoint elsewhere, without the backlog."""
    config = JsonlTrackerConfig(path=tmp_path / "runs")
    state = left_behind(config).state_dict()
    elsewhere = AccumulatorConfig(device="cpu", backlog_dir=tmp_path / "elsewhere")
    tracker = tracker_from_config(config.model_copy(update={"accumulator": elsewhere}))
    tracker.load_state_dict(state)
    with tracker.open(RunConfig(name="job")) as run:
        for step in range(10, 14):
            run.set_step(step)
            run.scalar("loss", float(step), {"stage": "train"})
    assert len(points(tmp_path / "runs")) < 14
    assert main(["deliver", "--backlog", str(tmp_path / "backlog")]) == 0
    assert sorted(points(tmp_path / "runs")) == [(step, float(step)) for step in range(14)]


def test_a_damaged_window_is_told_and_what_is_behind_it_delivered(left_behind, tmp_path, capsys):
    left_behind(JsonlTrackerConfig(path=tmp_path / "runs"))
    (path,) = (tmp_path / "backlog").glob("*.sqlite3")
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE windows SET payload = x'00' WHERE window = (SELECT MIN(window) FROM windows)")
    assert main(["deliver", "--backlog", str(tmp_path / "backlog")]) == 1
    assert "damaged" in capsys.readouterr().out
    assert points(tmp_path / "runs")[-1] == (9, 9.0)
    assert len(points(tmp_path / "runs")) < 10
    assert [file.suffix for file in (tmp_path / "backlog").iterdir()] == [".damaged"]
