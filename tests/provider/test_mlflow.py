"""What only MLflow can do or not, on sqlite and over HTTP."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from d9d_tracker.accumulator import AccumulatingTracker
from d9d_tracker.base import RunConfig
from d9d_tracker.config import AccumulatorConfig
from d9d_tracker.provider.mlflow import MLflowConfig
from d9d_tracker.provider.mlflow import tracker as mlflow_tracker
from d9d_tracker.provider.mlflow.tracker import MLflowTracker
from d9d_tracker.record import Histogram

from .conftest import MLflowStorage, key_of

PROPERTIES = RunConfig(name="a run", description="text", hparams={"lr": 0.1, "net": {"layers": [1, 2]}})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = f"sqlite:///{folder / 'mlflow.db'}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    jobs = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # a dozen processes that import MLflow
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--backend-store-uri", store, "--default-artifact-root", str(folder)],
            stdout=log,
            stderr=log,
            env={**os.environ, "PATH": path, **jobs},
            start_new_session=True,
        )
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            break
        except OSError:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"
    os.killpg(process.pid, signal.SIGTERM)
    process.wait()


@pytest.fixture(params=["sqlite", "http"])
def storage(request: pytest.FixtureRequest) -> MLflowStorage:
    if request.param == "http":
        return MLflowStorage(request.getfixturevalue("server"))
    return request.getfixturevalue("mlflow_storage")


def test_everything_is_read_back(storage: MLflowStorage) -> None:
    tracker = storage.tracker()
    values = torch.tensor([1.0, 2.0, 2.0, float("nan"), float("inf"), 0.0])
    with tracker.open(PROPERTIES) as run:
        run.set_context({"stage": "train"})
        for step in range(300):
            run.set_step(step)
            for series in range(5):
                run.scalar(f"series {series}", step / 7 + series)
        run.bins("grad", values)
    run_id = str(tracker.run_id)
    assert storage.scalars(run_id) == {
        key_of(f"series {series}", step, stage="train"): step / 7 + series for step in range(300) for series in range(5)
    }
    expected = Histogram.from_values(values).summary()
    metrics = storage.metrics(run_id)
    assert {kind: metrics[key_of(f"grad/{kind}", 299, stage="train")] for kind in expected} == expected
    assert set(expected) >= {"p01", "p05", "p25", "p50", "p75", "p95", "p99", "mean", "std", "min", "max", "zeros"}
    assert storage.properties(run_id) == {"id": run_id, **PROPERTIES.model_dump(exclude={"started", "ended"})}
    assert storage.client.get_run(run_id).data.params == {"lr": "0.1", "net.layers": "[1, 2]"}


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_the_page_says_how_a_run_ended(mlflow_storage: MLflowStorage, error: Any, status: str) -> None:
    tracker = mlflow_storage.tracker()

    def loop() -> None:
        with tracker.open(PROPERTIES):
            if error is not None:
                raise error

    if error is None:
        loop()
    else:
        with pytest.raises(error):
            loop()
    client = mlflow_storage.client
    assert client.get_run(str(tracker.run_id)).info.status == status
    with mlflow_storage.tracker(tracker.state_dict()).open(PROPERTIES):
        assert client.get_run(str(tracker.run_id)).info.status == "RUNNING"
    assert client.get_run(str(tracker.run_id)).info.status == "FINISHED"


def test_a_run_still_marked_as_running_is_worth_a_warning(
    mlflow_storage: MLflowStorage, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = mlflow_storage.tracker()
    with tracker.open(PROPERTIES):
        pass
    mlflow_storage.client.update_run(str(tracker.run_id), status="RUNNING")
    with mlflow_storage.tracker(tracker.state_dict()).open(PROPERTIES):
        assert f"run '{tracker.run_id}' is still marked as running" in caplog.text


def test_a_batch_without_an_answer_is_sent_again_and_stands_once(
    storage: MLflowStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = storage.tracker()
    send = MlflowClient.log_batch
    answers = iter([True, False, False])

    def lossy(client: MlflowClient, *arguments: Any, **options: Any) -> None:
        send(client, *arguments, **options)
        if not next(answers, True):
            raise MlflowException("the connection broke before the answer")

    with tracker.open(PROPERTIES) as run:
        monkeypatch.setattr(MlflowClient, "log_batch", lossy)
        for step in range(1500):
            run.set_step(step)
            run.scalar("loss", step)
        for _ in range(2):
            with pytest.raises(MlflowException):
                run.flush()
        run.flush()
    found = storage.scalars(str(tracker.run_id))
    assert found == {key_of("loss", step): float(step) for step in range(1500)}


def test_a_step_that_was_flushed_takes_no_second_value(mlflow_storage: MLflowStorage) -> None:
    tracker = mlflow_storage.tracker()
    with tracker.open(PROPERTIES) as run:
        run.scalar("loss", 1)
        run.flush()
        run.scalar("other", 1)
        with pytest.raises(ValueError, match="'loss' at step 0: MLflow cannot replace"):
            run.scalar("loss", 2)
    found = mlflow_storage.scalars(str(tracker.run_id))
    assert found == {key_of("loss", 0): 1.0, key_of("other", 0): 1.0}


def test_long_hparams_and_descriptions_survive_whole(storage: MLflowStorage) -> None:
    hparams = {"prompt": "äöü" * 20_000, "many": {str(number): number for number in range(300)}, "k" * 300: 1}
    properties = RunConfig(name="n" * 200, description="d" * 20_000, hparams=hparams)
    tracker = storage.tracker()
    with tracker.open(properties):
        pass
    run = storage.client.get_run(str(tracker.run_id))
    tags = run.data.tags

    def joined(key: str) -> str:
        further = sorted((int(tag.rpartition("/")[2]), text) for tag, text in tags.items() if tag.startswith(f"{key}/"))
        return tags[key] + "".join(text for _, text in further)

    import json

    assert json.loads(joined("hparams")) == hparams
    assert joined("mlflow.note.content") == properties.description
    assert len(run.data.params) == 302
    assert run.data.params["prompt"] == hparams["prompt"][:6000]


def test_the_environment_says_what_the_configuration_does_not(
    mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of the environment")
    tracker = MLflowTracker(MLflowConfig(accumulator=None))
    with tracker.open(RunConfig(name="a run")) as run:
        run.scalar("loss", 1.0)
    client = MlflowClient(tracking_uri=mlflow_store)
    found = client.get_run(str(tracker.run_id))
    assert client.get_experiment(found.info.experiment_id).name == "of the environment"
    assert found.data.metrics == {"loss": 1.0}


@pytest.mark.parametrize(
    ("uri", "expanded"),
    [
        ("~/runs", "/home/me/runs"),
        ("sqlite:///~/mlflow.db", "sqlite:////home/me/mlflow.db"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("http://localhost:5000/~me", "http://localhost:5000/~me"),
        (None, None),
    ],
)
def test_the_home_folder_in_a_path(uri: str | None, expanded: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert mlflow_tracker._expanded(uri) == expanded


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:secret@host:80/x", "https://me:***@host:80/x"),
        ("postgresql://me@host/runs", "postgresql://me@host/runs"),
    ],
)
def test_no_password_is_shown(uri: str, shown: str) -> None:
    how = MLflowTracker(MLflowConfig(tracking_uri=uri)).how_to_open()
    assert how is not None
    assert shown in how


def test_a_rollback_is_warned_of(mlflow_storage: MLflowStorage, caplog: pytest.LogCaptureFixture) -> None:
    tracker = mlflow_storage.tracker()
    with tracker.open(RunConfig(name="a run")) as run:
        for step in range(4):
            run.set_step(step)
            run.scalar("loss", step)
            run.flush()
    tracker.load_state_dict(tracker.state_dict())
    with tracker.open(RunConfig(name="a run")) as run:
        for step in (2, 3, 4):
            run.set_step(step)
            run.scalar("loss", step + 10)
            run.flush()
    mlflow_storage.amended = frozenset({3})  # the last step of the first life, which may have ended in its middle
    assert mlflow_storage.scalars(str(tracker.run_id)) == {
        key_of("loss", step): value for step, value in enumerate([0, 1, 2, 13, 14])
    }
    assert caplog.text.count("MLflow keeps what it was given of step 2 and later") == 1


def test_a_step_that_was_left_in_its_middle_ends_with_its_whole_value(
    mlflow_storage: MLflowStorage, tmp_path: Path
) -> None:
    accumulator = AccumulatorConfig(backlog_dir=tmp_path / "backlog", device="cpu")
    first = AccumulatingTracker(mlflow_storage.tracker(), accumulator)
    with first.open(PROPERTIES) as run:
        for step in range(3):
            run.set_step(step)
            run.scalar("tokens", 1.0, reduce="sum")
        state = first.state_dict()
    second = AccumulatingTracker(mlflow_storage.tracker(), accumulator)
    second.load_state_dict(state)
    with second.open(PROPERTIES) as run:
        run.scalar("tokens", 1.0, reduce="sum")
    mlflow_storage.amended = frozenset({2})
    found = mlflow_storage.scalars(str(second.run_id))
    assert found == {key_of("tokens", step): value for step, value in enumerate([1.0, 1.0, 2.0])}


def test_values_of_late_steps_come_in_any_order(storage: MLflowStorage) -> None:
    tracker = storage.tracker()
    with tracker.open(PROPERTIES) as run:
        for step in (30, 10, 40, 20):
            run.log_at(step, {"accuracy": step / 100})
            run.flush()
        with pytest.raises(ValueError, match="'accuracy' at step 20: MLflow cannot replace"):
            run.log_at(20, {"accuracy": 1.0})
    found = storage.scalars(str(tracker.run_id))
    assert found == {key_of("accuracy", step): step / 100 for step in (10, 20, 30, 40)}


def test_a_parameter_that_was_changed_is_said_and_stops_nothing(
    storage: MLflowStorage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    accumulator = AccumulatorConfig(sync_every=1, backlog_dir=tmp_path / "backlog", writer="thread")
    tracker = AccumulatingTracker(storage.tracker(), accumulator)
    with tracker.open(PROPERTIES) as run:
        run.add_hparams({"lr": 0.5, "new": 1})
        run.scalar("loss", 1.0)
    assert "MLflow cannot change parameters, and keeps what it has of lr" in caplog.text
    assert storage.client.get_run(str(tracker.run_id)).data.params == {"lr": "0.1", "net.layers": "[1, 2]", "new": "1"}
    assert storage.scalars(str(tracker.run_id)) == {key_of("loss", 0): 1.0}


def test_an_opening_that_failed_between_two_requests_is_made_up_for(
    mlflow_storage: MLflowStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = mlflow_storage.tracker()

    def fail(*_: Any, **__: Any) -> None:
        raise MlflowException("the connection broke")

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "log_batch", fail)
        with pytest.raises(MlflowException, match="broke"), tracker.open(PROPERTIES):
            pass
    with tracker.open(PROPERTIES):
        pass
    assert mlflow_storage.client.get_run(str(tracker.run_id)).data.params == {"lr": "0.1", "net.layers": "[1, 2]"}
