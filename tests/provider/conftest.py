"""The backends that store what they are given, each with its tool's own reader."""

import functools
import json
import math
import os
import sqlite3
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.util import get_core_path

from d9d_tracker.base import BaseTracker
from d9d_tracker.config import TrackerConfig
from d9d_tracker.provider.aim import AimConfig
from d9d_tracker.provider.jsonl import JsonlTracker, JsonlTrackerConfig
from d9d_tracker.provider.mlflow import MLflowConfig
from d9d_tracker.provider.mlflow.tracker import MLflowTracker
from d9d_tracker.provider.tensorboard import TensorBoardConfig
from d9d_tracker.provider.tensorboard.tracker import TensorBoardTracker
from d9d_tracker.provider.trackio import TrackioConfig
from d9d_tracker.provider.trackio.tracker import TrackioTracker
from d9d_tracker.provider.wandb import WandbConfig
from d9d_tracker.provider.wandb.tracker import WandbTracker
from d9d_tracker.record import Histogram
from tests.run_files import read_run

try:
    import aim
    from aim.sdk.index_manager import RepoIndexManager
    from aim.storage.context import Context

    from d9d_tracker.provider.aim.tracker import AimTracker
except ImportError:  # it has no wheel for this Python: what needs it is skipped by name
    AimTracker = None

Key = tuple[str, frozenset[tuple[str, str]], int]


def key_of(name: str, step: int, **context: str) -> Key:
    return name, frozenset(context.items()), step


class Storage(ABC):
    """A backend with a place to write to."""

    config: TrackerConfig
    tracker_type: type[BaseTracker[Any]]
    replaces = True  # what is logged again after a rewind replaces what was there

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
    def times(self, run_id: str, name: str) -> dict[int, float]:
        """When the points of a series without a context were, in seconds since the epoch, by step."""

    @abstractmethod
    def distributions(self, run_id: str) -> dict[Key, tuple[int, float, float, int, int]]:
        """Number of finite values, minimum, maximum, NaN count and infinity count of the histograms of a run."""


class JsonlStorage(Storage):
    tracker_type = JsonlTracker

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = JsonlTrackerConfig(path=folder, accumulator=None)

    def properties(self, run_id: str) -> dict[str, Any]:
        return {key: value for key, value in read_run(self.folder / f"{run_id}.jsonl")[0].items() if key != "time"}

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

    def times(self, run_id: str, name: str) -> dict[int, float]:
        _, records = read_run(self.folder / f"{run_id}.jsonl")
        return {record.step: record.time or math.nan for record in records if record.name == name}


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
        RepoIndexManager.get_index_manager(repo).index(run_id)
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

    def times(self, run_id: str, name: str) -> dict[int, float]:
        (data,) = [metric.data for metric in self.run(run_id).metrics() if metric.name == name]
        steps, (_, _, times) = data.items_list()
        return dict(zip(steps, times, strict=True))


class TensorBoardStorage(Storage):
    tracker_type = TensorBoardTracker

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = TensorBoardConfig(log_dir=folder, accumulator=None)

    def events(self, run_id: str) -> EventAccumulator:
        everything = dict.fromkeys(("scalars", "histograms", "tensors"), 0)
        events = EventAccumulator(str(self.folder / run_id), size_guidance=everything)
        return events.Reload()

    def properties(self, run_id: str) -> dict[str, Any]:
        events = self.events(run_id)
        tags = events.Tags()["tensors"]

        def text(tag: str) -> str | None:
            return events.Tensors(tag)[-1].tensor_proto.string_val[0].decode() if tag in tags else None

        hparams = json.loads(text("hparams") or "")
        return {"id": run_id, "name": text("name"), "description": text("description"), "hparams": hparams}

    def scalars(self, run_id: str) -> dict[Key, float]:
        events = self.events(run_id)
        points = {}
        for tag in events.Tags()["scalars"]:
            steps = [point.step for point in events.Scalars(tag)]
            assert len(set(steps)) == len(steps), f"{tag} holds a step twice"
            points |= {tagged(tag, "=", point.step): point.value for point in events.Scalars(tag)}
        return points

    def distributions(self, run_id: str) -> dict[Key, tuple[int, float, float, int, int]]:
        events = self.events(run_id)
        found = {}
        for tag in events.Tags()["histograms"]:
            steps = [point.step for point in events.Histograms(tag)]
            assert len(set(steps)) == len(steps), f"{tag} holds a step twice"
            for point in events.Histograms(tag):
                histogram = point.histogram_value
                assert sum(histogram.bucket) == histogram.num
                found[tagged(tag, "=", point.step)] = (int(histogram.num), histogram.min, histogram.max, 0, 0)
        return with_non_finite(found, self.scalars(run_id))

    def times(self, run_id: str, name: str) -> dict[int, float]:
        return {point.step: point.wall_time for point in self.events(run_id).Scalars(name)}


@functools.lru_cache
def _inspected(path: Path, *version: int) -> str:
    """A list of records as JSON, by what ``wandb leet inspect`` starts, once for each state of a file."""
    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", str(path)]
    command.append(str(path.parent.parent))
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return f"[{','.join(lines)}]"


class WandbStorage(Storage):
    tracker_type = WandbTracker

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = WandbConfig(project="tests", mode="offline", dir=folder, accumulator=None)

    def records(self, run_id: str) -> list[dict[str, Any]]:
        """What W&B's own reader finds in the logs of all lives of a run, oldest first."""
        found = []
        for path in sorted(self.folder.glob(f"wandb/offline-run-*/run-{run_id}.wandb")):
            stat = path.stat()
            found += json.loads(_inspected(path, stat.st_mtime_ns, stat.st_size))
        return found

    def properties(self, run_id: str) -> dict[str, Any]:
        run = next(record["run"] for record in self.records(run_id) if record["type"] == "run")
        hparams = {key: value for key, value in run["config"]["update"].items() if key != "_wandb"}
        return {"id": run["run_id"], "name": run["display_name"], "description": run.get("notes"), "hparams": hparams}

    def rows(self, run_id: str) -> dict[int, dict[str, Any]]:
        rows: dict[int, dict[str, Any]] = {}
        for record in self.records(run_id):
            if record["type"] == "history":
                step = record["history"]["step"].get("num", 0)
                assert step not in rows, f"step {step} stands twice"
                rows[step] = {k: value for k, value in record["history"]["item"].items() if not k.startswith("_")}
        return rows

    def scalars(self, run_id: str) -> dict[Key, float]:
        return {
            tagged(key, "=", step): float(value)
            for step, row in self.rows(run_id).items()
            for key, value in row.items()
            if not key.endswith(("._type", ".bins", ".values"))
        }

    def distributions(self, run_id: str) -> dict[Key, tuple[int, float, float, int, int]]:
        found = {}
        for step, row in self.rows(run_id).items():
            for key in [key.removesuffix("._type") for key in row if key.endswith("._type")]:
                edges, counts = row[f"{key}.bins"], row[f"{key}.values"]
                assert row[f"{key}._type"] == "histogram"
                assert len(edges) == len(counts) + 1 <= 512
                found[tagged(key, "=", step)] = (sum(counts), edges[0], edges[-1], 0, 0)
        return with_non_finite(found, self.scalars(run_id))

    def times(self, run_id: str, name: str) -> dict[int, float]:
        history = [record["history"] for record in self.records(run_id) if record["type"] == "history"]
        return {one["step"].get("num", 0): one["item"]["_timestamp"] for one in history if name in one["item"]}


class MLflowStorage(Storage):
    tracker_type = MLflowTracker
    replaces = False

    amended: frozenset[int] = frozenset()  # steps that may hold two values, of which the later one is right

    def __init__(self, uri: str):
        self.config = MLflowConfig(experiment="tests", tracking_uri=uri, accumulator=None)
        self.client = MlflowClient(tracking_uri=uri)

    def properties(self, run_id: str) -> dict[str, Any]:
        run = self.client.get_run(run_id)
        tags = run.data.tags
        return {
            "id": run.info.run_id,
            "name": run.info.run_name,
            "description": tags.get("mlflow.note.content"),
            "hparams": json.loads(tags["hparams"]),
        }

    def metrics(self, run_id: str) -> dict[Key, float]:
        points = {}
        for key in self.client.get_run(run_id).data.metrics:
            history = sorted(self.client.get_metric_history(run_id, key), key=lambda metric: metric.timestamp)
            steps = [metric.step for metric in history if metric.step not in self.amended]
            assert len(set(steps)) == len(steps), f"{key} holds a step twice"
            assert all(math.isfinite(metric.value) for metric in history)
            points |= {tagged(key, ":", metric.step): metric.value for metric in history}
        return points

    def scalars(self, run_id: str) -> dict[Key, float]:
        """The numbers, with NaN and infinities put back from the series that stand for them."""
        metrics = self.metrics(run_id)
        histograms = {name.removesuffix("/count") for name, _, _ in metrics if name.endswith("/count")}
        points = {}
        for (name, context, step), value in metrics.items():
            series, _, kind = name.rpartition("/")
            if series in histograms:
                continue
            if kind in ("nan", "inf"):
                points[series, context, step] = math.copysign(math.inf, value) if kind == "inf" else math.nan
            else:
                points[name, context, step] = value
        return points

    def distributions(self, run_id: str) -> dict[Key, tuple[int, float, float, int, int]]:
        metrics = self.metrics(run_id)
        found = {}
        for (name, context, step), count in metrics.items():
            if name.endswith("/count"):
                numbers = {
                    kind: metrics.get((f"{name.removesuffix('/count')}/{kind}", context, step), math.nan)
                    for kind in ("min", "max", "nan", "inf")
                }
                key = (name.removesuffix("/count"), context, step)
                found[key] = (int(count), numbers["min"], numbers["max"], int(numbers["nan"]), int(numbers["inf"]))
        return found

    def times(self, run_id: str, name: str) -> dict[int, float]:
        return {metric.step: metric.timestamp / 1000 for metric in self.client.get_metric_history(run_id, name)}


class TrackioStorage(Storage):
    tracker_type = TrackioTracker

    def __init__(self, folder: Path):
        self.config = TrackioConfig(project="tests", dir=folder, accumulator=None)

    def rows(self, run_id: str) -> list[tuple[str, int, float, dict[str, Any]]]:
        from trackio.sqlite_storage import SQLiteStorage

        with closing(sqlite3.connect(SQLiteStorage.get_project_db_path("tests"))) as database:
            ((name,),) = database.execute("SELECT DISTINCT run_name FROM metrics WHERE run_id = ?", (run_id,))
        rows, seen = [], set()
        for log in SQLiteStorage.get_logs("tests", name, run_id=run_id):
            step, time = log.pop("step"), datetime.fromisoformat(log.pop("timestamp")).timestamp()
            assert seen.isdisjoint((key, step) for key in log), "a point stands twice"
            seen |= {(key, step) for key in log}
            rows.append((name, step, time, log))
        return rows

    def properties(self, run_id: str) -> dict[str, Any]:
        from trackio.sqlite_storage import SQLiteStorage

        name = self.rows(run_id)[0][0]
        config = SQLiteStorage.get_run_config("tests", name, run_id=run_id)
        assert config is not None
        hparams = {key: value for key, value in config.items() if not key.startswith("_")}
        return {"id": run_id, "name": name, "description": config.get("_Description"), "hparams": hparams}

    def scalars(self, run_id: str) -> dict[Key, float]:
        return {
            tagged(key, "=", step): float(value)
            for _, step, _, row in self.rows(run_id)
            for key, value in row.items()
            if not isinstance(value, dict)
        }

    def distributions(self, run_id: str) -> dict[Key, tuple[int, float, float, int, int]]:
        found = {}
        for _, step, _, row in self.rows(run_id):
            for key, value in row.items():
                if isinstance(value, dict):
                    assert value["_type"] == "trackio.histogram"
                    assert len(value["bins"]) == len(value["values"]) + 1 <= 513
                    edges = value["bins"]
                    found[tagged(key, "=", step)] = (sum(value["values"]), edges[0], edges[-1], 0, 0)
        return with_non_finite(found, self.scalars(run_id))

    def times(self, run_id: str, name: str) -> dict[int, float]:
        return {step: time for _, step, time, row in self.rows(run_id) if name in row}


def tagged(text: str, sign: str, step: int) -> Key:
    """Read a name and its context back from one text."""
    parts = text.split("/")
    tags = frozenset((key, value) for key, _, value in (part.partition(sign) for part in parts if sign in part))
    return "/".join(part for part in parts if sign not in part), tags, step


def with_non_finite(
    found: dict[Key, tuple[int, float, float, int, int]], scalars: dict[Key, float]
) -> dict[Key, tuple[int, float, float, int, int]]:
    """Add the counts of NaN and infinite elements, which stand beside the histograms as scalars."""
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


@pytest.fixture
def tensorboard_storage(tmp_path: Path) -> TensorBoardStorage:
    return TensorBoardStorage(tmp_path / "runs")


@pytest.fixture(scope="session")
def quiet_wandb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("WANDB_CONSOLE", "off")
        patch.setenv("WANDB__DISABLE_STATS", "true")
        yield tmp_path_factory.mktemp("wandb")


@pytest.fixture
def wandb_storage(quiet_wandb: Path, tmp_path: Path) -> WandbStorage:
    return WandbStorage(tmp_path)


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    # Creating a store takes MLflow seconds; runs in one do not disturb each other.
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    MlflowClient(tracking_uri=uri).search_experiments()
    return uri


@pytest.fixture
def mlflow_storage(mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MLflowStorage:
    monkeypatch.chdir(tmp_path)  # where a store's artifacts lie is settled by whoever is the first to ask for it
    return MLflowStorage(mlflow_store)


@pytest.fixture
def trackio_storage() -> TrackioStorage:
    return TrackioStorage(Path(os.environ["TRACKIO_DIR"]))


@pytest.fixture(params=["jsonl", "aim", "tensorboard", "wandb", "mlflow", "trackio"])
def storage(request: pytest.FixtureRequest) -> Storage:
    return request.getfixturevalue(f"{request.param}_storage")
