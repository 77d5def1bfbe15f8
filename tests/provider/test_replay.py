"""A run in a JSON file, sent to another backend, is there as if it had been logged there at once, and only once."""

import contextlib
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

from d9d_tracker import (
    BaseTracker,
    BaseTrackerRun,
    JsonlTrackerConfig,
    Record,
    RunConfig,
    TrackerConfig,
    bare_run,
    factory,
)
from d9d_tracker.__main__ import main
from d9d_tracker.bare_run import BareRun
from d9d_tracker.commands import replay as replay_module
from d9d_tracker.commands.replay import config_from, replay
from d9d_tracker.provider.jsonl import JsonlTracker
from d9d_tracker.provider.jsonl_format import hparams_line, record_line, run_line
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
    monkeypatch.setattr(bare_run, "_AT_ONCE", 1)
    path = source(tmp_path / "source")
    write = BareRun.write
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
        patch.setattr(BareRun, "write", stopping)
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


def log_other_values(folder, first):
    """Have the job go back to a checkpoint and log as many points again, with other values."""
    (stored,) = read(folder)
    tracker = JsonlTracker(JsonlTrackerConfig(path=folder))
    tracker.load_state_dict({"run_id": stored.id})
    with tracker.open(PROPERTIES) as run:
        run.rewind(first)
        run.write(other for point in points(range(12)) if (other := changed(point, first)).step >= first)


def changed(point, first):
    return point._replace(value=7.0) if point.name == "accuracy" and point.step >= first else point


def test_points_that_changed_are_sent_again(storage, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(replay_module, "_FLUSH_EVERY", 5)
    path = source(tmp_path / "source")
    replay(path, storage.config, Console(quiet=True))
    first_id = run_id(path)
    log_other_values(tmp_path / "source", 6)
    replay(path, storage.config, Console())
    direct = storage.tracker()
    with direct.open(PROPERTIES) as run:
        run.write(changed(point, 6) for point in points(range(12)))
    assert contents(storage, run_id(path)) == contents(storage, direct.run_id)
    said = " ".join(capsys.readouterr().out.split())
    assert (run_id(path) != first_id) == (not direct.amends)
    assert (f"cannot be replaced in run {first_id}: sent to a new one" in said) == (not direct.amends)


def test_only_what_follows_a_change_is_sent_again(tmp_path, monkeypatch, capsys, destination):
    monkeypatch.setattr(replay_module, "_FLUSH_EVERY", 5)
    command = ["replay", str(source(tmp_path / "source")), "--provider", "jsonl", "--set", f"path={destination}"]
    assert main(command) == 0
    log_other_values(tmp_path / "source", 9)
    assert main(command) == 0
    assert "10 points sent, 28 in run" in " ".join(capsys.readouterr().out.split())
    assert records_of(destination) == records_of(tmp_path / "source")


def test_what_a_kill_left_and_then_changed_goes_to_a_new_run_where_it_cannot_be_replaced(tmp_path, monkeypatch):
    from d9d_tracker import MLflowConfig
    from d9d_tracker.commands.replay_position import Position

    path = source(tmp_path / "source")
    config = MLflowConfig(tracking_uri=f"sqlite:///{tmp_path / 'm.db'}", accumulator=None)

    def killed(position):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # between the store of the points and the note that they are there
        patched.setattr(Position, "move", killed)
        with pytest.raises(KeyboardInterrupt):
            replay(path, config, Console(quiet=True))
    first_id = run_id(path)
    log_other_values(tmp_path / "source", 6)
    replay(path, config, Console(quiet=True))
    assert run_id(path) != first_id


def test_hyperparameters_that_came_later_arrive(tmp_path, destination, capsys):
    path = source(tmp_path / "source")
    command = ["replay", str(path), "--provider", "jsonl", "--set", f"path={destination}"]
    assert main(command) == 0
    path.write_bytes(path.read_bytes() + hparams_line({"best": 5, "lr": 0.2}))
    assert main(command) == 0
    assert read(destination)[0].hparams == {**HPARAMS, "best": 5, "lr": 0.2}
    capsys.readouterr()
    assert main(command) == 0
    assert "all 28 points are in run" in " ".join(capsys.readouterr().out.split())


def test_hyperparameters_that_a_backend_takes_no_more_are_said(tmp_path, capsys):
    path = source(tmp_path / "source")
    command = ["replay", str(path), "--provider", "tensorboard", "--set", f"log_dir={tmp_path / 'tb'}"]
    assert main(command) == 0
    path.write_bytes(path.read_bytes() + hparams_line({"best": 5}))
    assert main(command) == 0
    assert "'best' was set later: TensorBoardRun takes hyperparameters on opening only" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize(
    ("error", "outcome"), [(None, "FINISHED"), (ValueError("no"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_times_and_the_way_it_ended_arrive(tmp_path, error, outcome):
    from mlflow import MlflowClient

    from d9d_tracker import MLflowConfig

    tracker = JsonlTracker(JsonlTrackerConfig(path=tmp_path / "source"))
    with contextlib.suppress(BaseException), tracker.open(RunConfig(name="x", started=1e9, ended=1e9 + 60)) as run:
        run.scalar("loss", 1.0)
        if error is not None:
            raise error
    (stored,) = read(tmp_path / "source")
    words = None if error is None else f"{type(error).__name__}: {error}"
    assert (stored.started, stored.end.time, stored.end.error) == (1e9, 1e9 + 60, words)
    uri = f"sqlite:///{tmp_path / 'm.db'}"
    replay(stored.path, MLflowConfig(tracking_uri=uri, accumulator=None), Console(quiet=True))
    info = MlflowClient(uri).get_run(run_id(stored.path)).info
    assert (info.start_time, info.end_time, info.status) == (10**12, 10**12 + 60_000, outcome)
    replay(stored.path, JsonlTrackerConfig(path=tmp_path / "copy", accumulator=None), Console(quiet=True))
    (copy,) = read(tmp_path / "copy")
    assert (copy.started, copy.end) == (stored.started, stored.end)


def test_an_end_that_came_later_arrives(tmp_path, destination):
    tracker = JsonlTracker(JsonlTrackerConfig(path=tmp_path / "source"))
    config = JsonlTrackerConfig(path=destination, accumulator=None)
    run = tracker.start(PROPERTIES)
    run.scalar("loss", 1.0)
    run.flush()
    replay(tmp_path / "source", config, Console(quiet=True))
    assert read(destination)[0].end.outcome == "finished"
    run.finish(ValueError("diverged"))
    replay(tmp_path / "source", config, Console(quiet=True))
    assert read(destination)[0].end == read(tmp_path / "source")[0].end


def test_a_run_that_was_being_opened_when_the_replay_was_stopped_is_said(tmp_path, destination, monkeypatch, capsys):
    command = ["replay", str(source(tmp_path / "source")), "--provider", "jsonl", "--set", f"path={destination}"]

    def killed(tracker, properties, run_id):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(JsonlTracker, "open_run", killed)
        with pytest.raises(KeyboardInterrupt):
            main(command)
    assert main(command) == 0
    assert "stopped as it opened a run 'large'" in " ".join(capsys.readouterr().out.split())
    assert main(command) == 0
    assert "stopped as it opened" not in capsys.readouterr().out


def test_a_destination_that_fails_is_one_line(tmp_path, monkeypatch, capsys):
    class UnreachableError(Exception):
        pass

    def fails(tracker, properties):
        raise UnreachableError("HTTPConnectionPool(host='x'):\n  Max retries exceeded")

    monkeypatch.setattr(JsonlTracker, "open", fails)
    command = ["replay", str(source_file(tmp_path)), "--provider", "jsonl", "--set", f"path={tmp_path / 'd'}"]
    assert main(command) == 1
    printed = capsys.readouterr()
    assert "Max retries exceeded. Run the command again" in " ".join(printed.err.split())
    assert "Traceback" not in printed.err + printed.out


def source_file(folder):
    path = folder / "run.jsonl"
    path.write_bytes(run_line("run", PROPERTIES) + record_line(Record("loss", 0, {}, 1.0)))
    return path


def test_a_damaged_file_is_named_and_the_others_are_sent(tmp_path, destination, capsys):
    path = source_file(tmp_path)
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_bytes(path.read_bytes() + b'{"type":"scalar"}\n')
    assert main(["replay", str(tmp_path), "--provider", "jsonl", "--set", f"path={destination}"]) == 1
    assert "damaged.jsonl" in capsys.readouterr().err
    assert len(read(destination)) == 1


def test_configurations_come_from_the_command_line(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"provider": "wandb", "project": "a", "mode": "offline"}))
    config = config_from(None, ["project=b", "tags=[1, 2]"][:1], file)
    assert (config.project, config.mode, config.accumulator) == ("b", "offline", None)
    with pytest.raises(ValueError, match="log_dir: Field required"):
        config_from("tensorboard", [], None)
    with pytest.raises(ValueError, match="NAME=VALUE"):
        config_from("tensorboard", ["log_dir"], None)
    with pytest.raises(ValueError, match="no backend is named: give --provider"):
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
        position.write_text(json.dumps({**json.loads(position.read_text()), "marks": []}))
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
