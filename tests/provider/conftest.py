"""The backends that store what they are given, each with its tool's own reader."""

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import aim
import pytest
from aim.sdk.index_manager import RepoIndexManager
from aim.storage.context import Context

from d9d_tracker.base import BaseTracker
from d9d_tracker.config import TrackerConfig
from d9d_tracker.provider.aim.config import AimConfig
from d9d_tracker.provider.aim.tracker import AimTracker
from d9d_tracker.provider.jsonl import JsonlTracker, JsonlTrackerConfig, read_run
from d9d_tracker.record import Histogram

Key = tuple[str, frozenset[tuple[str, str]], int]


def key_of(name: str, step: int, **context: str) -> Key:
    return name, frozenset(context.items()), step


class Storage(ABC):
    """A backend with a place to write to."""

    config: TrackerConfig
    tracker_type: type[BaseTracker[Any]]

    def tracker(self, state: dict[str, Any] | None = None) -> BaseTracker[Any]:
        tracker = self.tracker_type.from_config(self.config)
        if state is not None:
            tracker.load_state_dict(state)
        return tracker

    @abstractmethod
    def properties(self, run_id: str) -> dict[str, Any]:
        """Name, description and hparams of a run."""

    @abstractmethod
    def scalars(self, run_id: str) -> dict[Key, float]:
        """All numbers of a run."""

    @abstractmethod
    def distributions(self, run_id: str) -> dict[Key, tuple[int, float, float, int, int]]:
        """Number of finite values, minimum, maximum, NaN count and infinity count of the histograms of a run."""


class JsonlStorage(Storage):
    tracker_type = JsonlTracker

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = JsonlTrackerConfig(path=folder, accumulator=None)

    def properties(self, run_id: str) -> dict[str, Any]:
        return read_run(self.folder / f"{run_id}.jsonl")[0]

    def scalars(self, run_id: str) -> dict[Key, float]:
        _, records = read_run(self.folder / f"{run_id}.jsonl")
        return {key_of(r.name, r.step, **r.context): r.value for r in records if not isinstance(r.value, Histogram)}

    def distributions(self, run_id: str) -> dict[Key, tuple[int, float, float, int, int]]:
        _, records = read_run(self.folder / f"{run_id}.jsonl")
        return {
            key_of(r.name, r.step, **r.context): (h.count, h.min, h.max, h.nan, h.posinf + h.neginf)
            for r in records
            if isinstance(h := r.value, Histogram)
        }


class AimStorage(Storage):
    tracker_type = AimTracker

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = AimConfig(
            repo=str(folder),
            log_system_params=False,
            capture_terminal_logs=False,
            system_tracking_interval=None,
            accumulator=None,
        )

    def run(self, run_id: str) -> Any:
        """Index the run, as Aim's server does, and open it for reading."""
        repo = aim.Repo(str(self.folder))
        RepoIndexManager(repo).index(run_id)
        repo.container_pool.clear()
        run = repo.get_run(run_id)
        assert run is not None
        return run

    def properties(self, run_id: str) -> dict[str, Any]:
        run = self.run(run_id)
        return {"id": run.hash, "name": run.name, "description": run.description, "hparams": run["hparams"]}

    def scalars(self, run_id: str) -> dict[Key, float]:
        points = {}
        for metric in self.run(run_id).metrics():
            steps, (values, *_) = metric.data.items_list()
            context = metric.context.to_dict()
            points |= {key_of(metric.name, step, **context): value for step, value in zip(steps, values, strict=True)}
        return points

    def distributions(self, run_id: str) -> dict[Key, tuple[int, float, float, int, int]]:
        scalars = self.scalars(run_id)
        run = self.run(run_id)
        found = {}
        for info in run.collect_sequence_info("distributions")["distributions"]:
            context = Context(info["context"])
            sequence = run.get_distribution_sequence(info["name"], context)
            for step, value in zip(*sequence.values.sparse_list(), strict=True):
                counts, edges = value.to_np_histogram()
                key = key_of(info["name"], step, **info["context"])
                found[key] = (int(counts.sum()), edges[0], edges[-1], 0, 0)
        for (name, context, step), value in scalars.items():
            series, _, kind = name.rpartition("/")
            if kind in ("nan", "inf"):
                total, low, high, nan, inf = found.get((series, context, step), (0, math.nan, math.nan, 0, 0))
                counts = (int(value), inf) if kind == "nan" else (nan, int(value))
                found[series, context, step] = (total, low, high, *counts)
        return found


@pytest.fixture(scope="session")
def aim_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Creating a repository takes Aim a second; runs in one do not disturb each other.
    return tmp_path_factory.mktemp("aim")


@pytest.fixture
def aim_storage(aim_repo: Path) -> AimStorage:
    return AimStorage(aim_repo)


@pytest.fixture
def jsonl_storage(tmp_path: Path) -> JsonlStorage:
    return JsonlStorage(tmp_path / "runs")


@pytest.fixture(params=["jsonl", "aim"])
def storage(request: pytest.FixtureRequest) -> Storage:
    return request.getfixturevalue(f"{request.param}_storage")
