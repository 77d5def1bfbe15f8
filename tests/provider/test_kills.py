"""Killed and resumed, TensorBoard, W&B and MLflow hold what an uninterrupted training leaves: nothing lost or doubled.

Aim and JSONL have the whole crash harness in ``tests/resume``.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import MLflowStorage, Storage, TensorBoardStorage, WandbStorage, key_of

KILLS = int(os.environ.get("KILLS", "6"))
SEED = int(os.environ.get("SEED", "0"))
ROOT = Path(__file__).parents[2]


class Lives:
    """Starts trainings, one at a time."""

    def __init__(self) -> None:
        # A life has a W&B process of its own, and does not share the one that tests in this process have started.
        environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
        path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("lives.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )

    def start(self, folder: Path, storage: Storage, by_halves: bool = False, writer: str = "thread") -> int:
        accumulator = {"sync_every": 5, "device": "cpu", "backlog_dir": str(folder / "backlog"), "writer": writer}
        config = json.loads(storage.config.model_dump_json()) | {"accumulator": accumulator}
        return int(self._ask(json.dumps({"folder": str(folder), "config": config, "by_halves": by_halves})))

    def wait(self) -> int:
        return int(self._ask("wait"))

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()

    def _ask(self, line: str) -> str:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(line, file=self._server.stdin, flush=True)
        return self._server.stdout.readline()


@pytest.fixture(scope="module")
def lives() -> Iterator[Lives]:
    lives = Lives()
    yield lives
    lives.close()


def content(folder: Path, storage: Storage) -> tuple[dict[Any, Any], dict[Any, Any]]:
    run_id = json.loads((folder / "run_id").read_text())["run_id"]
    return storage.scalars(run_id), storage.distributions(run_id)


def progress(folder: Path) -> int:
    path = folder / "progress"
    return int(path.read_text() or -1) if path.exists() else -1


def train_with(
    lives: Lives,
    folder: Path,
    storage: Storage,
    name: str,
    kills: int,
    moments: random.Random,
    writer: str = "thread",
) -> int:
    """Train to the end, ending lives at random moments on the way; return how many were ended."""
    folder.mkdir(exist_ok=True)
    ended = 0
    while True:
        life = lives.start(folder, storage, writer=writer)
        status = None
        if ended < kills:
            target = progress(folder) + moments.randrange(1, 60 // kills)
            deadline = time.monotonic() + 60
            while progress(folder) < target and time.monotonic() < deadline and _is_alive(life):
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.05))
            _end(life, name, with_helpers=writer == "thread")
        status = lives.wait()
        assert status in (0, 1, -signal.SIGKILL), (folder / "output").read_text()
        if status == 0:
            return ended
        assert ended < kills, (folder / "output").read_text()
        ended += 1


def _end(life: int, name: str, with_helpers: bool) -> None:
    """End a life; by SIGKILL together with its helpers, as when the machine goes down, or without them."""
    helpers = []
    if name == "SIGKILL" and with_helpers:
        helpers = [int(child) for path in Path(f"/proc/{life}/task").glob("*/children") for child in _words(path)]
    for process in [*helpers, life]:
        try:
            os.kill(process, getattr(signal, name))
        except ProcessLookupError:
            assert process != life


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:  # a thread that has ended meanwhile
        return []


def _is_alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.fixture
def make_storage(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str, str], Storage]:
    def make(backend: str, name: str) -> Storage:
        if backend == "tensorboard":
            return TensorBoardStorage(tmp_path / name / "runs")
        if backend == "wandb":
            request.getfixturevalue("quiet_wandb")
            return WandbStorage(tmp_path / name)
        if backend == "trackio":
            return request.getfixturevalue("trackio_storage")
        return MLflowStorage(request.getfixturevalue("mlflow_store"))

    return make


# MLflow can take nothing back, so that a window which a termination ended early stays beside the whole one.
@pytest.mark.parametrize(
    ("backend", "name"),
    [
        ("tensorboard", "SIGKILL"),
        ("tensorboard", "SIGTERM"),
        pytest.param("wandb", "SIGKILL", marks=pytest.mark.slow),
        pytest.param("wandb", "SIGTERM", marks=pytest.mark.slow),
        ("mlflow", "SIGKILL"),
        ("trackio", "SIGKILL"),
        ("trackio", "SIGTERM"),
    ],
)
def test_an_interrupted_training_leaves_what_a_whole_one_does(
    backend: str, name: str, lives: Lives, make_storage: Callable[[str, str], Storage], tmp_path: Path
) -> None:
    whole, killed = make_storage(backend, "whole"), make_storage(backend, "killed")
    moments = random.Random(SEED)
    assert train_with(lives, tmp_path / "whole", whole, name, 0, moments) == 0
    ended = train_with(lives, tmp_path / "killed", killed, name, KILLS, moments)
    scalars, distributions = content(tmp_path / "whole", whole)
    assert len(scalars) >= 60 + 60 + 6
    assert len(distributions) == 12
    assert content(tmp_path / "killed", killed) == (scalars, distributions)
    assert ended >= 2


# A writer that lives on for a moment still writes, and the next life waits for it.
@pytest.mark.parametrize("backend", ["tensorboard", pytest.param("mlflow", marks=pytest.mark.slow)])
def test_a_training_that_is_killed_beside_its_writer_leaves_what_a_whole_one_does(
    backend: str, lives: Lives, make_storage: Callable[[str, str], Storage], tmp_path: Path
) -> None:
    whole, killed = make_storage(backend, "whole"), make_storage(backend, "killed")
    moments = random.Random(SEED)
    assert train_with(lives, tmp_path / "whole", whole, "SIGKILL", 0, moments) == 0
    kills = max(2, KILLS // 2)
    assert train_with(lives, tmp_path / "killed", killed, "SIGKILL", kills, moments, writer="process") >= 2
    assert content(tmp_path / "killed", killed) == content(tmp_path / "whole", whole)


def test_a_step_that_was_cut_in_half_is_whole_in_the_end(lives: Lives, storage: Storage, tmp_path: Path) -> None:
    for status in (9, 0):
        lives.start(tmp_path, storage, by_halves=True)
        assert lives.wait() == status, (tmp_path / "output").read_text()
    scalars, _ = content(tmp_path, storage)
    losses = {key_of("loss", step): 10.0 * step + 2 for step in range(6)}
    assert scalars == losses | {key_of("val/acc", step): step / 8 for step in range(6)}
