"""What Aim alone does: its histograms, its locks, its extras."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from aim.storage.context import Context
from pydantic import ValidationError

from d9d_tracker import AccumulatorConfig, log, tracker_from_config
from d9d_tracker.base import RunConfig
from d9d_tracker.provider.aim import AimConfig
from d9d_tracker.provider.aim.tracker import AimTracker
from d9d_tracker.record import Histogram

from .conftest import AimStorage, key_of

PROPERTIES = RunConfig(name="a run")

CHILD = """
import os, sys, threading
from d9d_tracker.base import RunConfig
from d9d_tracker.provider.aim import AimConfig
from d9d_tracker.provider.aim.tracker import AimTracker

tracker = AimTracker.from_config(AimConfig(
    repo=sys.argv[1], log_system_params=False, capture_terminal_logs=False, system_tracking_interval=None,
))
with tracker.open(RunConfig(name="child")) as run:
    def write():
        for step in range(10):
            run.set_step(step)
            run.scalar("loss", step)
    writer = threading.Thread(target=write)
    writer.start()
    writer.join()
    print(tracker.run_id, flush=True)
    sys.stdin.read()
"""


@contextmanager
def child_writer(repo: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a process that has written ten steps and holds its run open. Yield it and the run's id."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(repo)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_distributions_are_64_equal_bins_with_an_exact_total(aim_storage: AimStorage) -> None:
    histogram = Histogram.from_values(torch.randn(100_001))
    tracker = aim_storage.tracker()
    with tracker.open(PROPERTIES) as run:
        run.histogram("grad", histogram)
    sequence = aim_storage.run(tracker.run_id).get_distribution_sequence("grad", Context({}))
    counts, edges = sequence.values.sparse_list()[1][0].to_np_histogram()
    assert len(counts) == 64
    assert counts.dtype == np.int64
    assert counts.sum() == 100_001
    assert counts.min() >= 0
    np.testing.assert_array_equal(edges, np.linspace(histogram.min, histogram.max, 65))
    np.testing.assert_allclose(np.cumsum(counts), histogram.cumulative_at(edges[1:]), atol=0.5)


def test_a_histogram_and_a_scalar_of_one_name_are_refused(aim_storage: AimStorage) -> None:
    tracker = aim_storage.tracker()
    with tracker.open(PROPERTIES) as run:
        run.scalar("grad", 1)
        with pytest.raises(ValueError, match="'grad'"):
            run.bins("grad", torch.ones(2))


def test_a_live_writer_is_protected_and_a_killed_one_can_be_followed(aim_storage: AimStorage, aim_repo: Path) -> None:
    with child_writer(aim_repo) as (process, run_id):
        with pytest.raises(RuntimeError, match=f"run '{run_id}' .*written by another job"):
            aim_storage.tracker({"run_id": run_id}).open(PROPERTIES).__enter__()
        process.kill()
        process.wait()
    lock = aim_repo / ".aim" / "locks" / f"{run_id}.softlock"
    assert lock.exists()
    # As if another process had got the killed one's id, and a clock ran ahead: then nobody takes it for a leftover.
    machine, _, rest = lock.read_text().split("-", maxsplit=2)
    lock.write_text(f"{machine}-{os.getpid()}-{rest}")
    os.utime(lock, (2**32, 2**32))
    with aim_storage.tracker({"run_id": run_id}).open(PROPERTIES) as run:
        for step in range(8, 12):
            run.set_step(step)
            run.scalar("loss", 100 + step)
    expected = {step: float(step if step < 8 else 100 + step) for step in range(12)}
    assert aim_storage.scalars(run_id) == {key_of("loss", step): value for step, value in expected.items()}


def test_what_looks_like_a_secret_is_not_stored(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(log, "_said", set())
    secrets = (
        "WANDB_API_KEY",
        "HF_TOKEN",
        "AWS_SECRET_ACCESS",
        "DB_PASSWORD",
        "MYSQL_PWD",
        "GOOGLE_APPLICATION_CREDENTIALS",
    )
    for name in (*secrets, "SENTRY_DSN", "SSH_AUTH_SOCK"):
        monkeypatch.setenv(name, "hush")
    monkeypatch.setenv("DATABASE_URL", "postgres://me:hush@host/db")
    monkeypatch.setenv("HARMLESS", "seen")
    arguments = ["train.py", "--api-key", "hush", "--token=hush", "--keys", "--lr", "0.1", "https://me:hush@host/x"]
    monkeypatch.setattr(sys, "argv", arguments)
    storage = AimStorage(tmp_path)
    config = AimConfig(repo=str(tmp_path), system_tracking_interval=None, capture_terminal_logs=False)
    for _ in range(2):
        tracker = AimTracker.from_config(config)
        with tracker.open(PROPERTIES) as run:
            run.scalar("loss", 1)
    stored = storage.run(tracker.run_id)["__system_params"]
    assert "hush" not in str(stored)
    assert stored["env_variables"]["HARMLESS"] == "seen"
    assert stored["env_variables"]["DATABASE_URL"] == "postgres://host/db"
    assert "PWD" not in os.environ or "PWD" in stored["env_variables"]
    assert list(stored["arguments"])[-3:] == ["--lr", "0.1", "https://host/x"]
    (said,) = [record.message for record in caplog.records if "secret" in record.message]
    assert all(name in said for name in secrets)
    assert b"hush" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_system_parameters_and_terminal_output_if_asked_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    storage = AimStorage(tmp_path)
    tracker = AimTracker.from_config(AimConfig(repo=str(tmp_path), system_tracking_interval=0.1))
    with tracker.open(PROPERTIES) as run:
        run.scalar("loss", 1)
        print("hello from the loop")
    stored = storage.run(tracker.run_id)
    assert "packages" in stored["__system_params"]
    _, lines = stored.get_terminal_logs().values.sparse_list()
    assert lines[0].data == "hello from the loop"
    assert any(name.startswith("__system__") for name, _, _ in storage.scalars(tracker.run_id))


def test_a_new_repository_is_created_and_closed_runs_are_finished(tmp_path: Path) -> None:
    storage = AimStorage(tmp_path / "new" / "repo")
    tracker = storage.tracker()
    with tracker.open(PROPERTIES) as run:
        run.scalar("loss", 1)
    assert not storage.run(tracker.run_id).active
    assert list((tmp_path / "new" / "repo" / ".aim" / "locks").glob("*.softlock")) == []


def test_a_run_that_goes_on_keeps_what_is_not_given_again(aim_storage: AimStorage) -> None:
    tracker = aim_storage.tracker()
    with tracker.open(RunConfig(name="first", description="why", hparams={"lr": 0.1})):
        pass
    tracker.resume_id = tracker.run_id
    with tracker.open(RunConfig(name="second")):
        pass
    assert aim_storage.properties(tracker.run_id) == {
        "id": tracker.run_id,
        "name": "second",
        "description": "why",
        "hparams": {"lr": 0.1},
    }


def test_a_closed_run_holds_no_file_open_for_writing(tmp_path: Path) -> None:
    tracker = AimStorage(tmp_path).tracker()
    with tracker.open(PROPERTIES) as run:
        run.scalar("loss", 1)
        assert open_logs(tmp_path)
    assert not open_logs(tmp_path)


def open_logs(repo: Path) -> list[str]:
    """Return the write-ahead logs of RocksDB that this process has open, of any run."""
    files = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    return [file for file in files if file.startswith(str(repo)) and file.endswith(".log")]


def test_config() -> None:
    config = AimConfig(repo="r")
    assert (config.log_system_params, config.capture_terminal_logs, config.system_tracking_interval) == (True, True, 10)
    with pytest.raises(ValidationError):
        AimConfig(repo="r", system_tracking_interval=0)


def test_an_open_that_fails_lets_go_of_the_lock(aim_storage: AimStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = aim_storage.tracker()
    with tracker.open(PROPERTIES):
        pass
    state = tracker.state_dict()
    with monkeypatch.context() as patched:
        patched.setattr(AimTracker, "_open_aim", lambda *_: (_ for _ in ()).throw(OSError("no room")))
        with pytest.raises(OSError, match="no room"):
            aim_storage.tracker(state).open(PROPERTIES).__enter__()
    with aim_storage.tracker(state).open(PROPERTIES) as run:
        assert run.id == state["run_id"]


def test_a_rewind_spares_what_aim_itself_measures(aim_storage: AimStorage) -> None:
    tracker = aim_storage.tracker()
    with tracker.open(PROPERTIES) as run:
        for step in range(3):
            run.set_step(step)
            run.scalar("__system__cpu", float(step))
            run.scalar("loss", float(step))
        run.rewind(1)
    names = [(name, step) for name, _, step in aim_storage.scalars(str(tracker.run_id))]
    assert sorted(names) == [("__system__cpu", 0), ("__system__cpu", 1), ("__system__cpu", 2), ("loss", 0)]


def test_in_a_process_of_its_own_it_observes_the_training(
    aim_storage: AimStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "writer"))
    monkeypatch.setenv("PYTHONPATH", "where/it/was")
    import actions

    accumulator = AccumulatorConfig(device="cpu", sync_every=2, backlog_dir=tmp_path / "backlog", flush_timeout=300)
    tracker = tracker_from_config(AimConfig(repo=str(aim_storage.folder), accumulator=accumulator))
    write = sys.stdout.write
    with tracker.open(RunConfig(name="observed")) as run:
        print("the first line")
        print("and an error", file=sys.stderr)
        run.scalar("loss", 1.0)
        (process, system) = run.backend(actions.observed)[""].result(300)
        print("the last line")
    print("behind its end")
    assert sys.stdout.write == write
    assert capsys.readouterr().out.count("the last line") == 1
    assert process == os.getpid()
    assert system["arguments"] == sys.argv
    assert system["env_variables"]["PYTHONPATH"] == "where/it/was"
    logs = aim_storage.run(str(tracker.run_id)).get_terminal_logs()
    (lines,) = logs.values.sparse_list()[1:]
    printed = ["the first line", "and an error", "the last line"]
    assert [line.data for line in lines if line.data in (*printed, "behind its end")] == printed
