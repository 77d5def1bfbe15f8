"""A run in a JSON file, sent to another backend, is there as if it had been logged there at once, and only once."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import ClassVar, Literal

import pytest
from rich.console import Console

from d9d_tracker import BaseTracker, BaseTrackerRun, JsonlTrackerConfig, Record, RunConfig, TrackerConfig, factory
from d9d_tracker.__main__ import main
from d9d_tracker.backend import RecordRun
from d9d_tracker.commands import replay as replay_module
from d9d_tracker.commands.replay import config_from, replay
from d9d_tracker.provider.jsonl import JsonlTracker
from d9d_tracker.reading import read
from tests.reading.conftest import histogram

HPARAMS = {"lr": 0.1, "model": {"depth": 3}}
PROPERTIES = RunConfig(name="large", description="what was tried", hparams=HPARAMS)


def points(steps, name="loss"):
    for step in steps:
        yield Record(name, step, {"stage": "train"}, 1.0 / (1 + step), 1764345600.0 + step)
        yield Record("accuracy", step, {}, step / 64, 1764345600.0 + step)
        if step % 4 == 3:
            yield Record("weights", step, {"stage": "train"}, histogram(step / 4), 1764345600.0 + step)
    yield Record("broken", steps[-1], {}, math.nan, 1764345600.0 + steps[-1])


def source(folder, steps=range(12)):
    with JsonlTracker(JsonlTrackerConfig(path=folder)).open(PROPERTIES) as run:
        run.write(points(steps))
    (run,) = read(folder)
    return run.path


def log_again(folder, step, name):
    """Have the job go on, from a step on."""
    (stored,) = read(folder)
    tracker = JsonlTracker(JsonlTrackerConfig(path=folder))
    tracker.load_state_dict({"run_id": stored.id})
    with tracker.open(PROPERTIES) as run:
        run.set_step(step)
        run.scalar(name, 9.0)


def run_id(path):
    (position,) = path.parent.glob("*.replay")
    return json.loads(position.read_text())["state"]["run_id"]


def contents(storage, run_id):
    properties = {key: value for key, value in storage.properties(run_id).items() if key != "id"}
    scalars = {key: repr(value) for key, value in storage.scalars(run_id).items()}
    distributions = {key: repr(value) for key, value in storage.distributions(run_id).items()}
    return properties, scalars, distributions, storage.times(run_id, "accuracy")


def test_it_is_there_as_if_it_had_been_logged_there(storage, tmp_path):
    path = source(tmp_path / "source")
    replay(path, storage.config, Console(quiet=True))
    direct = storage.tracker()
    with direct.open(PROPERTIES) as run:
        run.write(points(range(12)))
    assert contents(storage, run_id(path)) == contents(storage, direct.run_id)
    replay(path, storage.config, Console(quiet=True))
    assert contents(storage, run_id(path)) == contents(storage, direct.run_id)


@pytest.mark.parametrize("stop_after", [1, 16, *(pytest.param(point, marks=pytest.mark.slow) for point in (9, 27))])
def test_what_is_stopped_and_run_again_doubles_nothing(storage, tmp_path, monkeypatch, stop_after):
    monkeypatch.setattr(replay_module, "_FLUSH_EVERY", 5)
    path = source(tmp_path / "source")
    write = RecordRun.write
    written = 0

    def stopping(run, records):
        def counted():
            nonlocal written
            for record in records:
                written += 1
                if written == stop_after:
                    raise KeyboardInterrupt
                yield record

        write(run, counted())

    with monkeypatch.context() as patch:
        patch.setattr(RecordRun, "write", stopping)
        with pytest.raises(KeyboardInterrupt):
            replay(path, storage.config, Console(quiet=True))
    replay(path, storage.config, Console(quiet=True))
    direct = storage.tracker()
    with direct.open(PROPERTIES) as run:
        run.write(points(range(12)))
    assert contents(storage, run_id(path))[1:] == contents(storage, direct.run_id)[1:]


@pytest.fixture
def destination(tmp_path):
    return tmp_path / "destination"


def records_of(destination):
    (run,) = read(destination)
    return [(record.name, record.step, repr(record.value)) for record in run.records() if record.name != "weights"]


def test_killed_it_goes_on(tmp_path, destination):
    path = source(tmp_path / "source", range(8_000))
    command = [sys.executable, "-m", "d9d_tracker", "replay", str(path), "--provider", "jsonl"]
    command += ["--set", f"path={destination}"]
    for _ in range(2):
        size = sum(file.stat().st_size for file in destination.glob("*.jsonl"))
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and sum(f.stat().st_size for f in destination.glob("*.jsonl")) <= size + 1000:
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert records_of(destination) == records_of(path.parent)


def test_what_a_job_logs_later_is_sent_later(tmp_path, destination, capsys):
    command = ["replay", str(source(tmp_path / "source")), "--provider", "jsonl", "--set", f"path={destination}"]
    assert main(command) == 0
    log_again(tmp_path / "source", 12, "loss")
    assert main(command) == 0
    assert "1 points sent, 29 in run" in " ".join(capsys.readouterr().out.split())
    assert records_of(destination) == records_of(tmp_path / "source")


def test_a_run_that_was_resumed_from_a_checkpoint_meanwhile_is_sent_again(tmp_path, destination):
    command = ["replay", str(source(tmp_path / "source")), "--provider", "jsonl", "--set", f"path={destination}"]
    assert main(command) == 0
    log_again(tmp_path / "source", 6, "other")
    assert main(command) == 0
    assert records_of(destination) == records_of(tmp_path / "source")


def test_configurations_come_from_the_command_line(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"provider": "wandb", "project": "a", "mode": "offline"}))
    config = config_from(None, ["project=b", "tags=[1, 2]"][:1], file)
    assert (config.project, config.mode, config.accumulator) == ("b", "offline", None)
    with pytest.raises(ValueError, match="log_dir: Field required"):
        config_from("tensorboard", [], None)
    with pytest.raises(ValueError, match="NAME=VALUE"):
        config_from("tensorboard", ["log_dir"], None)
    with pytest.raises(ValueError, match="provider"):
        config_from(None, [], None)


def test_what_cannot_be_sent_is_said_in_one_line(tmp_path, capsys, destination):
    path = source(tmp_path / "source")
    assert main(["replay", str(path), "--provider", "jsonl"]) == 1
    assert "path: Field required" in " ".join(capsys.readouterr().err.split())
    command = ["replay", str(path), "--provider", "jsonl", "--set", f"path={destination}"]
    assert main(command) == 0
    held = JsonlTracker(JsonlTrackerConfig(path=destination))
    held.load_state_dict({"run_id": run_id(path)})
    with held.open(PROPERTIES):
        os.utime(path)
        (position,) = path.parent.glob("*.replay")
        position.write_text(json.dumps({**json.loads(position.read_text()), "points": 1}))
        assert main(command) == 1
    assert "being written by another job" in " ".join(capsys.readouterr().err.split())


class NotedRun(BaseTrackerRun):
    """A run of a backend that has the contract alone."""

    calls: ClassVar[list] = []

    def set_step(self, step):
        self.calls.append(("step", step))

    def set_context(self, context):
        pass

    def scalar(self, name, value, context=None):
        self.calls.append((name, value))
        if len(self.calls) == 7:
            raise KeyboardInterrupt

    def bins(self, name, values, context=None):
        pass

    def rewind(self, step):
        self.calls.append(("rewind", step))


class NotedConfig(TrackerConfig):
    provider: Literal["noted"] = "noted"


class NotedTracker(BaseTracker[NotedConfig]):
    @classmethod
    def from_config(cls, config):
        return cls()

    @contextmanager
    def open(self, properties):
        yield NotedRun()


def test_a_backend_that_has_the_contract_alone_is_told_what_comes_again(tmp_path, monkeypatch):
    monkeypatch.setitem(factory._MAP, NotedConfig, NotedTracker)
    monkeypatch.setattr(replay_module, "_FLUSH_EVERY", 1)
    with JsonlTracker(JsonlTrackerConfig(path=tmp_path)).open(PROPERTIES) as run:
        run.write(Record("loss", step, {}, float(step)) for step in range(4))
    with pytest.raises(KeyboardInterrupt):
        replay(tmp_path, NotedConfig(accumulator=None), Console(quiet=True))
    del NotedRun.calls[:]
    replay(tmp_path, NotedConfig(accumulator=None), Console(quiet=True))
    assert NotedRun.calls == [("rewind", 2), ("step", 2), ("loss", 2.0), ("step", 3), ("loss", 3.0)]
