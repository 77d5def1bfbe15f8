"""Each way of logging at each moment: what is stored is what an undisturbed run stores.

``python -m tests.test_matrix`` runs all of it and prints the tables. A training of a moment logs in every way at once;
each cell then looks at what was stored of its way. It has 8 steps of 2 calls each, in windows of 3 steps.
"""

import functools
import gc
import json
import multiprocessing
import os
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import pytest
import torch
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the processes that are started here

import d9d_tracker
import d9d_tracker_kernels
from d9d_tracker import (
    AccumulatorConfig,
    AimConfig,
    Histogram,
    JsonlTrackerConfig,
    MLflowConfig,
    RunConfig,
    TensorBoardConfig,
    TrackerConfig,
    TrackerValueError,
    TrackioConfig,
    WandbConfig,
    read,
    tracker_from_config,
)

from .matrix_backend import OwnConfig, lower_edges
from .matrix_ways import OVERWRITTEN, Hparams, Population, Stored, Watch, Way, all_ways, series_of

CALLS = 16
HALF = 8  # the first call of step 4, in the middle of a window
ENDS = (2, 5, 7)
PATIENCE = float(os.environ.get("PATIENCE", 60))


@dataclass(frozen=True)
class Setting:
    """Where a training logs to, and how.

    Attributes:
        backend: Gives the configuration of the backend in a folder.
        read: Reads a run back, by the folder and its id.
        writer: Where the backend is.
        compiled: The backend of torch.compile for all ways that can be called in compiled code; None for eager code.
    """

    backend: Callable[..., TrackerConfig]
    read: Callable[[Path, str], Stored]
    writer: Any = "thread"
    compiled: str | None = None


class Life:
    """An open run, and the ways that log to it."""

    def __init__(self, tracker: Any, run: Any, ways: list[Way], compiled: str | None):
        self.tracker, self.run, self.ways, self.step = tracker, run, ways, 0
        for way in ways:
            way.begin(run)
            way.begin_run(run, compiled)
        self._inside = None
        if compiled is not None:
            inside = [way for way in ways if way.compiles]

            def log_inside(k: torch.Tensor) -> torch.Tensor:
                for way in inside:
                    way.log(run, k, 0)
                return k * 2

            self._inside = torch.compile(log_inside, backend=compiled, fullgraph=True)

    def log(self, calls: range) -> None:
        """Two calls of every way in each step."""
        for k in calls:
            self.set_step(k // 2)
            self.call(k)

    def set_step(self, step: int) -> None:
        self.run.set_step(step)
        self.step = step

    def call(self, k: int) -> None:
        """One call of every way, those in compiled code first."""
        step = self.step
        if self._inside is not None:
            self._inside(torch.tensor(float(k)))
        for way in self.ways:
            if self._inside is None or not way.compiles:
                way.log(self.run, k, step)


@dataclass
class Training:
    """A training in a folder, of one life or several.

    Attributes:
        folder: Where everything lies.
        setting: Where it logs to.
        ways: How it logs.
        calls: The step of each call, if that is known.
        counts: Else how many calls of each way are stored, at least and at most.
        refused: Points that backends have refused, by series.
    """

    folder: Path
    setting: str
    ways: list[Way] = field(default_factory=all_ways)
    calls: Mapping[int, int] = field(default_factory=lambda: {k: k // 2 for k in range(CALLS)})
    counts: dict[Way, tuple[int, int]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    run_id: str = ""

    @contextmanager
    def life(self, state: Any = None, **accumulator: Any) -> Iterator[Life]:
        setting = SETTINGS[self.setting]
        config = AccumulatorConfig(
            **{
                "sync_every": 3,
                "device": "cpu",
                "backlog_dir": self.folder / "backlog",
                "writer": setting.writer,
                "flush_timeout": PATIENCE,
                "summary": False,
                **accumulator,
            }
        )
        tracker: Any = tracker_from_config(setting.backend(self.folder, accumulator=config))
        if state is not None:
            tracker.load_state_dict(state)
        try:
            with tracker.open(RunConfig(name="matrix")) as run:
                yield Life(tracker, run, self.ways, setting.compiled)
        finally:
            self.run_id = str(tracker.run_id)
            self.refused += tracker.report.refused

    @property
    def file(self) -> Path:
        """Where a life that is killed leaves what the next one goes on with."""
        return self.folder / "state.pt"

    def killed_life(self, live: Callable[["Training", Life], None]) -> Any:
        """Have a life in a process of its own, which kills itself; return the state that it has saved."""
        process = _PROCESSES.Process(target=_live, args=(self.folder, self.setting, live))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, (self.folder / "output").read_text()
        saved = torch.load(self.file, weights_only=True)
        self.refused += Counter(saved["refused"])
        return saved["tracker"]

    def until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "it has not come"
            time.sleep(0.001)


_PROCESSES = multiprocessing.get_context("forkserver")


def _live(folder: Path, setting: str, live: Callable[[Training, Life], None]) -> None:
    """A life that is to be killed, in its process."""
    gc.freeze()  # what it was forked with is not looked through
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.pop("WANDB_SERVICE", None)  # a life has a process of W&B of its own
    training = Training(folder, setting)
    is_late = (folder / "closed").exists()
    with _closed(training) if is_late else nullcontext(), training.life() as life:
        live(training, life)
        refused = dict(life.tracker.report.refused)
        torch.save({"tracker": torch.load(training.file, weights_only=True), "refused": refused}, training.file)
        os.kill(os.getpid(), signal.SIGKILL)


# The moments: what happens to a training.


def undisturbed(training: Training) -> None:
    with training.life() as life:
        life.log(range(CALLS))


def next_run(training: Training) -> None:
    """What a run before has made, handles, timed functions and compiled code, logs to the next one of its tracker."""
    with training.life() as life:
        life.log(range(5))
    with life.tracker.open(RunConfig(name="matrix")) as life.run:
        life.run.scalars({"other": 1.0, "another": 1.0})  # have the slots of others
        for way in life.ways:
            way.begin_run(life.run, SETTINGS[training.setting].compiled)
        life.log(range(CALLS))
    training.run_id = str(life.tracker.run_id)
    training.refused += life.tracker.report.refused


def flush(training: Training) -> None:
    with training.life() as life:
        life.log(range(HALF + 1))
        life.run.flush()
        life.log(range(HALF + 1, CALLS))


def _saves_in_mid_step(training: Training, life: Life) -> None:
    life.log(range(HALF + 1))
    torch.save(life.tracker.state_dict(), training.file)
    life.log(range(HALF + 1, 13))
    life.run.flush()


def killed(training: Training) -> None:
    state = training.killed_life(_saves_in_mid_step)
    with training.life(state) as life:
        life.log(range(HALF + 1, CALLS))


def _flushes_and_saves(training: Training, life: Life) -> None:
    life.log(range(HALF + 1))
    life.run.flush()
    torch.save(life.tracker.state_dict(), training.file)
    life.log(range(HALF + 1, 11))
    life.run.flush()


def flushed_and_killed(training: Training) -> None:
    state = training.killed_life(_flushes_and_saves)
    with training.life(state) as life:
        life.log(range(HALF + 1, CALLS))


def stopped(training: Training) -> None:
    with training.life() as life:
        life.log(range(HALF + 1))
        state = life.tracker.state_dict()
    with training.life(state) as life:
        life.log(range(HALF + 1, CALLS))


def down(training: Training) -> None:
    with training.life() as life:
        life.log(range(5))
        (training.folder / "down").touch()
        life.log(range(5, 13))
        training.until(lambda: life.tracker.report.failures)
        life.log(range(13, 14))
        (training.folder / "down").unlink()
        life.log(range(14, CALLS))
    assert life.tracker.report.undelivered == 0


@contextmanager
def _closed(training: Training) -> Iterator[None]:
    """Whoever opens the backend now is kept waiting, and not waited for; until the file is removed."""
    (training.folder / "closed").touch()
    with ExitStack() as patches:
        for module in [module for module in sys.modules.values() if hasattr(module, "OPEN_SECONDS")]:
            patches.enter_context(mock.patch.object(module, "OPEN_SECONDS", 0.1))
        try:
            yield
        finally:
            (training.folder / "closed").unlink(missing_ok=True)


def opens_late(training: Training) -> None:
    with _closed(training), training.life() as life:
        life.log(range(HALF + 1))
        (training.folder / "closed").unlink()
        life.log(range(HALF + 1, CALLS))
    assert life.tracker.report.undelivered == 0


def _saves_before_it_opens(training: Training, life: Life) -> None:
    life.log(range(HALF + 1))
    torch.save(life.tracker.state_dict(), training.file)
    (training.folder / "closed").unlink()
    life.log(range(HALF + 1, 11))
    life.run.flush()


def opens_after_the_state(training: Training) -> None:
    (training.folder / "closed").touch()
    state = training.killed_life(_saves_before_it_opens)
    with training.life(state) as life:
        life.log(range(HALF + 1, CALLS))


def refuses_late(training: Training) -> None:
    with _closed(training), training.life() as life:
        life.log(range(HALF + 1))
        (training.folder / "refused").touch()
        (training.folder / "closed").unlink()
        life.run.flush()
        life.log(range(HALF + 1, CALLS))
        state = life.tracker.state_dict()
    assert life.tracker.report.undelivered > 0
    (training.folder / "refused").unlink()
    with training.life(state):
        pass


def second_thread(training: Training) -> None:
    done = threading.Event()

    def log(life: Life) -> None:
        k = 1
        while not done.is_set() or k < CALLS:
            life.call(k)
            k += 1
        training.counts = dict.fromkeys(life.ways, (k, k))

    with training.life() as life, ExitStack() as thread:
        life.call(0)  # which compiles what is compiled
        thread.enter_context(_beside(lambda: log(life)))
        for step in range(30):
            life.set_step(step)
            if step % 4 == 3:
                life.run.flush()
            if step == 15:
                life.tracker.state_dict()
        done.set()


def end_meanwhile(training: Training) -> None:
    begun = threading.Event()

    def log(callers: list[Caller]) -> None:
        while all([caller.call() for caller in callers]):  # noqa: C419 - to the end of the round
            if callers[-1].stored[1] == CALLS:
                begun.set()

    with ExitStack() as thread:  # noqa: SIM117 - the thread outlives the run
        with training.life() as life:
            callers = [Caller(life, way) for way in life.ways]
            thread.enter_context(_beside(lambda: log(callers)))
            for step in range(8):
                life.set_step(step)
            assert begun.wait(PATIENCE)
    training.counts = {caller.way: caller.stored for caller in callers}


class Caller:
    """Calls a way as long as the run is open."""

    def __init__(self, life: Life, way: Way):
        self.way = way
        self._life, self._calls, self._unsure = life, 0, 0

    @property
    def stored(self) -> tuple[int, int]:
        """How many calls are stored, at least and at most: one that ended when the run was closed may be or not."""
        return self._calls - self._unsure, self._calls

    def call(self) -> bool:
        run = self._life.run
        if self.way.name == "backend(...)" and self._calls == 3 * CALLS:  # each waits for the disk
            return run.is_open
        if run.is_open:
            k, self._calls = self._calls, self._calls + 1
            with suppress(TrackerValueError):  # of a closed run, from what cannot be dropped with a word
                self.way.log(run, k, self._life.step)
            self._unsure += not run.is_open
        return run.is_open


def signal_handler(training: Training) -> None:
    """The handler logs between any two lines of ours that run as the run steps, flushes, logs and is saved."""
    with training.life() as life:
        callers = [Caller(life, way) for way in life.ways]
        life.set_step(0)
        with _signals(callers):
            for step in range(1, 5):
                life.set_step(step)
            life.run.flush()
            life.tracker.state_dict()
        for caller in callers:
            if not isinstance(caller.way, Watch):  # the gradient of two passes at once belongs to neither
                with _signals([caller]):
                    caller.call()
    training.counts = {caller.way: caller.stored for caller in callers}


def signal_handler_at_the_end(training: Training) -> None:
    """The handler logs between any two lines of ours that run as the run ends."""
    life_of_run = training.life()
    life = life_of_run.__enter__()
    callers = [Caller(life, way) for way in life.ways]
    with _signals(callers):
        life_of_run.__exit__(None, None, None)
    training.counts = {caller.way: caller.stored for caller in callers}


@contextmanager
def _beside(work: Callable[[], None]) -> Iterator[None]:
    """Do something on another thread, with as many changes between the threads as there can be."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread, interval = threading.Thread(target=run), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        thread.start()
        yield
    finally:
        thread.join()
        sys.setswitchinterval(interval)
    if errors:
        raise errors[0]


_OURS = tuple(str(Path(module.__file__).parent) for module in (d9d_tracker, d9d_tracker_kernels))


@contextmanager
def _signals(callers: list[Caller]) -> Iterator[None]:
    """A signal comes between any two lines of ours on this thread, where a handler may run; twice at most at each."""
    seen: Counter[tuple[str, int]] = Counter()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_OURS):
            return None
        line = frame.f_code.co_filename, frame.f_lineno
        if event == "line" and seen[line] < 2:
            seen[line] += 1
            signal.raise_signal(signal.SIGUSR1)
        return trace

    handler = signal.signal(signal.SIGUSR1, lambda *_: [caller.call() for caller in callers])
    tracer = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(tracer)
        signal.signal(signal.SIGUSR1, handler)


# The settings: where a training logs to, and how it is read back.


def _jsonl(folder: Path, **accumulator: Any) -> TrackerConfig:
    return JsonlTrackerConfig(path=folder / "runs", **accumulator)


def _read_jsonl(folder: Path, run_id: str) -> Stored:
    (run,) = read(folder / "runs" / f"{run_id}.jsonl")
    stored = Stored(hparams=run.hparams)
    for record in run.records():
        value = lower_edges(record.value) if isinstance(record.value, Histogram) else record.value
        stored.put(series_of(record.name, record.context), record.step, value)
    return stored


def _own(folder: Path, **accumulator: Any) -> TrackerConfig:
    return OwnConfig(path=folder, **accumulator)


def _once(folder: Path, **accumulator: Any) -> TrackerConfig:
    return OwnConfig(path=folder, once=True, **accumulator)


def _read_own(folder: Path, run_id: str) -> Stored:
    content = json.loads((folder / f"{run_id}.json").read_text())
    stored = Stored(hparams=content["hparams"])
    for name, tags, step, value in content["points"]:
        series = series_of(name, json.loads(tags))
        stored.put(series, step, dict(map(tuple, value)) if isinstance(value, list) else value)
    return stored


def _wandb(folder: Path, **accumulator: Any) -> TrackerConfig:
    os.environ |= {"WANDB_SILENT": "true", "WANDB_CONSOLE": "off", "WANDB__DISABLE_STATS": "true"}
    return WandbConfig(project="tests", mode="offline", dir=folder, **accumulator)


def _read_wandb(folder: Path, run_id: str) -> Stored:
    from .provider.conftest import WandbStorage

    storage, stored = WandbStorage(folder), Stored()
    for record in storage.records(run_id):
        stored.hparams |= record.get("config", {}).get("update", {})
    for step, row in storage.rows(run_id).items():
        for key, value in row.items():
            if key.endswith("._type"):
                name = key.removesuffix("._type")
                stored.put(_untagged(name, "="), step, _whole_numbers(row[f"{name}.bins"], row[f"{name}.values"]))
            elif not key.endswith((".bins", ".values")):
                stored.put(_untagged(key, "="), step, float(value))
    return stored


def _whole_numbers(edges: list[float], counts: list[int]) -> dict[float, int]:
    """The values behind a histogram of W&B: each is the lower edge of its bin, but the largest is the last edge."""
    values = Counter(dict(zip(map(float, edges), counts, strict=False)))
    if sum(counts) > 1 and float(edges[-1]).is_integer():
        values.subtract([float(edges[-2])])
        values.update([float(edges[-1])])
    return dict(+values)


def _untagged(key: str, sign: str) -> str:
    """Read a name and its tags back from one text."""
    parts = key.split("/")
    tags = [part.replace(sign, "=") for part in parts if sign in part]
    return " ".join(["/".join(part for part in parts if sign not in part), *sorted(tags)])


def _mlflow(folder: Path, **accumulator: Any) -> TrackerConfig:
    _make_mlflow_store(_mlflow_store(folder))
    return MLflowConfig(experiment="tests", tracking_uri=_mlflow_store(folder), **accumulator)


def _mlflow_store(folder: Path) -> str:
    return f"sqlite:///{folder.parent / 'mlflow.db'}"


@functools.cache
def _make_mlflow_store(uri: str) -> None:
    """One for all, and before a run is opened: it may take MLflow longer than opening is waited for."""
    from mlflow import MlflowClient

    MlflowClient(tracking_uri=uri).search_experiments()


def _read_mlflow(folder: Path, run_id: str) -> Stored:
    from mlflow import MlflowClient

    client, stored = MlflowClient(tracking_uri=_mlflow_store(folder)), Stored()
    data = client.get_run(run_id).data
    stored.hparams = dict(data.params)
    points: dict[str, dict[int, float]] = {}
    for key in data.metrics:
        history = sorted(client.get_metric_history(run_id, key), key=lambda metric: metric.timestamp)
        points[key] = {metric.step: metric.value for metric in history}  # the last one holds
    counted = {key.removesuffix("/count") for key in points if key.endswith("/count")}
    for key, values in points.items():
        if key.rpartition("/")[0] not in counted:
            stored.scalars[_untagged(key, ":")] = values
    for key in counted:
        stored.populations[_untagged(key, ":")] = {
            step: (round(count), points[f"{key}/mean"][step] * count) for step, count in points[f"{key}/count"].items()
        }
    return stored


def _trackio(folder: Path, **accumulator: Any) -> TrackerConfig:
    os.environ.setdefault("TRACKIO_DIR", str(folder.parent / "trackio"))  # a process has one, from the first import on
    return TrackioConfig(project="matrix", **accumulator)


def _read_trackio(folder: Path, run_id: str) -> Stored:
    from trackio.sqlite_storage import SQLiteStorage

    with closing(sqlite3.connect(SQLiteStorage.get_project_db_path("matrix"))) as database:
        rows = database.execute(
            "SELECT run_name, step, metrics FROM metrics WHERE run_id = ? ORDER BY id", (run_id,)
        ).fetchall()
    stored = Stored(hparams=SQLiteStorage.get_run_config("matrix", rows[0][0], run_id=run_id) or {})
    for _, step, row in rows:
        for key, value in json.loads(row).items():
            is_histogram = isinstance(value, dict)
            number = _whole_numbers(value["bins"], value["values"]) if is_histogram else float(value)
            stored.put(_untagged(key, "="), step, number)
    return stored


def _tensorboard(folder: Path, **accumulator: Any) -> TrackerConfig:
    return TensorBoardConfig(log_dir=folder, **accumulator)


def _read_tensorboard(folder: Path, run_id: str) -> Stored:
    from .provider.conftest import TensorBoardStorage

    events, stored = TensorBoardStorage(folder).events(run_id), Stored()
    for tag in events.Tags()["scalars"]:
        for point in events.Scalars(tag):
            stored.put(_untagged(tag, "="), point.step, point.value)
    for tag in events.Tags()["histograms"]:
        for point in events.Histograms(tag):
            histogram = point.histogram_value
            edges = [histogram.min, *histogram.bucket_limit]
            counted = {edge: int(count) for edge, count in zip(edges, histogram.bucket, strict=False) if count}
            stored.put(_untagged(tag, "="), point.step, counted)
    for content in events.PluginTagToContent("hparams").values():
        start = HParamsPluginData.FromString(content).session_start_info
        stored.hparams |= {key: value.number_value for key, value in start.hparams.items()}
    return stored


def _aim(folder: Path, **accumulator: Any) -> TrackerConfig:
    return AimConfig(
        repo=str(folder.parent / "aim"),
        log_system_params=False,
        capture_terminal_logs=False,
        system_tracking_interval=None,
        **accumulator,
    )


def _read_aim(folder: Path, run_id: str) -> Stored:
    from .provider.conftest import AimStorage

    storage = AimStorage(folder.parent / "aim")
    stored = Stored(hparams=storage.run(run_id)["hparams"])
    for (name, tags, step), value in storage.scalars(run_id).items():
        stored.put(series_of(name, dict(tags)), step, value)
    for (name, tags, step), (count, *_) in storage.distributions(run_id).items():
        stored.populations.setdefault(series_of(name, dict(tags)), {})[step] = (count, 0.0)
    return stored


SETTINGS = {
    "jsonl": Setting(_jsonl, _read_jsonl),
    "jsonl, compiled": Setting(_jsonl, _read_jsonl, compiled="eager"),
    "jsonl, writer's process": Setting(_jsonl, _read_jsonl, writer="process"),
    "own": Setting(_own, _read_own),
    "own, writer's process": Setting(_own, _read_own, writer="process"),
    "a step once": Setting(_once, _read_own),
    "W&B": Setting(_wandb, _read_wandb),
    "MLflow": Setting(_mlflow, _read_mlflow),
    "Trackio": Setting(_trackio, _read_trackio, writer="auto"),
    "TensorBoard": Setting(_tensorboard, _read_tensorboard),
    "Aim": Setting(_aim, _read_aim, writer="auto"),
}

_OF_ALL = (undisturbed, next_run, flush, killed, flushed_and_killed, stopped)
_ROUGH = (second_thread, signal_handler, signal_handler_at_the_end, end_meanwhile)
_TROUBLES = (down, opens_late, opens_after_the_state, refuses_late)
MOMENTS = {
    "jsonl": (*_OF_ALL, *_ROUGH),
    "jsonl, compiled": (*_OF_ALL, second_thread),
    "jsonl, writer's process": (*_OF_ALL, end_meanwhile),
    "own": _TROUBLES,
    "own, writer's process": _TROUBLES,
    "a step once": (*_OF_ALL, down),
    "W&B": (next_run, flush, killed, stopped),
    "MLflow": (next_run, flush, killed, stopped),
    "Trackio": (next_run, flush, killed, stopped),
    "TensorBoard": (next_run, flush, killed, stopped),
    "Aim": (next_run, killed, stopped),
}
WORDS = {
    undisturbed: "undisturbed",
    next_run: "the next run",
    flush: "`flush` in mid-step",
    killed: "saved, killed, resumed",
    flushed_and_killed: "flushed, saved, killed, resumed",
    stopped: "stopped in mid-step, resumed",
    down: "backend down",
    opens_late: "opens late",
    opens_after_the_state: "opens after the state, killed, resumed",
    refuses_late: "refuses late, then resumed",
    second_thread: "second thread",
    signal_handler: "signal handler",
    signal_handler_at_the_end: "signal handler at the end",
    end_meanwhile: "the end meanwhile",
}
CHANGES_WINDOWS = (flush, flushed_and_killed, opens_after_the_state, refuses_late)


@functools.cache
def trained(setting: str, moment: Callable[[Training], None]) -> tuple[Training, Stored] | BaseException:
    """Have a training at a moment, once for all its cells."""
    training = Training(Path(tempfile.mkdtemp(dir=_root().name)), setting)
    try:
        moment(training)
        return training, SETTINGS[setting].read(training.folder, training.run_id)
    except Exception as error:
        return error


@functools.cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="matrix")


@dataclass(frozen=True)
class Limit:
    """Cells that cannot hold what an undisturbed run does.

    Attributes:
        why: The reason, as the documentation gives it.
        ways: How the names of the ways begin.
        cells: Settings, and their moments.
        is_kept: Whether what is stored is what the reason says.
    """

    why: str
    ways: tuple[str, ...]
    cells: dict[str, tuple[Callable[[Training], None], ...]]
    is_kept: Callable[[Way, Training, Stored], bool]

    def covers(self, way: str, setting: str, moment: Callable[[Training], None]) -> bool:
        return way.startswith(self.ways) and moment in self.cells.get(setting, ())


def _is_refused_and_counted(way: Way, training: Training, stored: Stored) -> bool:
    found, expected = way.found(stored, False), way.expected(training.calls, stored, None)
    missing = {step for step in expected if found.get(step) != expected[step]}
    return found.keys() <= expected.keys() and 0 < len(missing) <= training.refused[way.series()[0]]


def _has_early_windows_beside(way: Way, training: Training, stored: Stored) -> bool:
    found, expected = way.found(stored, True), way.expected(training.calls, stored, ENDS)
    early = {series: points.keys() - expected[series].keys() for series, points in found.items()}
    whole = {series: {step: found[series].get(step) for step in expected[series]} for series in found}
    return whole == expected and all(len(steps) == 1 for steps in early.values())


def _has_either_value(way: Way, training: Training, stored: Stored) -> bool:
    numbers = [value for _, value in sorted(way.found(stored, False).items()) if value != OVERWRITTEN]
    return numbers == sorted(set(numbers))


def _has_failed_by_its_future(way: Way, training: Training, stored: Stored) -> bool:
    assert isinstance(way, Hparams)
    done, ends = way.found(stored, False)
    kept = {f"called{k}": k for k, end in enumerate(ends) if end is None}
    return done == kept and all(end is None or isinstance(end, (ConnectionError, ValueError)) for end in ends)


def _is_not_more(way: Way, training: Training, stored: Stored) -> bool:
    _, most = training.counts[way]
    if isinstance(way, Population):
        expected, found = way.expected(dict.fromkeys(range(most), 0), stored, None), way.found(stored, False)
        compiled = way.compiled_series()
        return all(
            sum(found[series].values()) <= sum(all_of.values()) if series in compiled else found[series] == all_of
            for series, all_of in expected.items()
        )
    numbers = [value for points in way.found(stored, False).values() for value in (points or {}).values()]
    return way.name.split()[1] == "sum" or all(-1 <= value <= most for value in numbers)


def _has_as_many_values(way: Way, training: Training, stored: Stored) -> bool:
    def counts(of: Any) -> Any:
        return {key: counts(part) for key, part in of.items()} if isinstance(of, dict) else of[0]

    return counts(way.found(stored, True)) == counts(way.expected(training.calls, stored, ENDS))


LIMITS = (
    Limit(
        "A backend that takes a step once (`amends = False`, W&B) takes no more for a step that an earlier window "
        "brought; MLflow, for a step that `flush` brought. What comes later is refused, counted in "
        "`tracker.report.refused` and named.",
        ("log_at a step late",),
        {"a step once": MOMENTS["a step once"], "W&B": MOMENTS["W&B"], "MLflow": (flush,)},
        _is_refused_and_counted,
    ),
    Limit(
        "MLflow takes nothing back: a window that the stop ended early stays beside the whole one. The numbers of the "
        "step are right, by a second value.",
        ("bins", "counts", "histogram", "handle bins", "watch"),
        {"MLflow": (stopped,)},
        _has_early_windows_beside,
    ),
    Limit(
        "Two calls: where a step begins between them, each value stands at its own.",
        ("log_at over a scalar",),
        {"jsonl": _ROUGH, "jsonl, compiled": (second_thread,), "jsonl, writer's process": (end_meanwhile,)},
        _has_either_value,
    ),
    Limit(
        "What the action does is its own: that the backend was down, or refused to open, is the exception of the "
        "future, and it is not tried again.",
        ("backend(...)",),
        dict.fromkeys(("own", "own, writer's process", "a step once"), (down, refuses_late)),
        _has_failed_by_its_future,
    ),
    Limit(
        "Compiled code takes no lock: of what it logs in another thread than the one that steps, some may be lost. "
        "Where it is compiled in that thread, it is warned of.",
        tuple(way.name for way in all_ways() if way.compiled_series()),
        {"jsonl, compiled": (second_thread,)},
        _is_not_more,
    ),
    Limit(
        "Aim has 64 equal bins between the least and the largest value: how many values there are is exact.",
        ("bins", "counts", "histogram", "handle bins", "watch", "log_at a histogram"),
        {"Aim": MOMENTS["Aim"]},
        _has_as_many_values,
    ),
    Limit(
        "TensorBoard takes hyperparameters on opening only; that later ones did not arrive is said.",
        ("add_hparams", "backend(...)"),
        {"TensorBoard": MOMENTS["TensorBoard"]},
        lambda way, training, stored: not way.found(stored, False)[0],
    ),
)


def check(way: int, setting: str, moment: Callable[[Training], None]) -> None:
    outcome = trained(setting, moment)
    if isinstance(outcome, BaseException):
        raise outcome
    training, stored = outcome
    one = training.ways[way]
    for limit in LIMITS:
        if limit.covers(one.name, setting, moment):
            assert limit.is_kept(one, training, stored), one.found(stored, False)
            return
    if training.counts:
        least, most = training.counts[one]
        found = one.found(stored, False)
        assert one.holds_one_of(stored, range(least, most + 1)), f"not {least} to {most} calls: {found}"
        return
    ends = None if moment in CHANGES_WINDOWS else ENDS
    assert one.found(stored, ends is not None) == one.expected(training.calls, stored, ends)


WAYS = [way.name for way in all_ways()]
COLUMNS = [(setting, moment) for setting, moments in MOMENTS.items() for moment in moments]


@pytest.mark.parametrize("way", range(len(WAYS)), ids=WAYS)
@pytest.mark.parametrize(("setting", "moment"), COLUMNS, ids=[f"{s}-{m.__name__}" for s, m in COLUMNS])
def test_it_is_stored(way: int, setting: str, moment: Callable[[Training], None]) -> None:
    check(way, setting, moment)


def test_the_documentation_has_the_table() -> None:
    assert table() in (Path(__file__).parents[1] / "docs/guide/arriving.md").read_text()


def table() -> str:
    """All cells in one table: a row for each method, a column for each moment, and the numbers of the limits."""
    methods: dict[str, list[str]] = {}
    for way in all_ways():
        methods.setdefault(way.method, []).append(way.name)
    lines = [f"| | {' | '.join(WORDS.values())} |", "|---" * (len(WORDS) + 1) + "|"]
    for method, ways in methods.items():
        cells = [_cell([_limits(way, s, m) for way in ways for s, m in COLUMNS if m is moment]) for moment in WORDS]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {limit.why}" for number, limit in enumerate(LIMITS, start=1))])


def _limits(way: str, setting: str, moment: Callable[[Training], None]) -> list[int]:
    return [number for number, limit in enumerate(LIMITS, start=1) if limit.covers(way, setting, moment)]


def _cell(limits: list[list[int]]) -> str:
    numbers = sorted({number for some in limits for number in some})
    return " ".join([*(["yes"] if [] in limits else []), *(f"({number})" for number in numbers)])


def main() -> None:
    for setting, moments in MOMENTS.items():
        if len(sys.argv) > 1 and setting not in sys.argv[1:]:
            continue
        print(f"\n{setting}", flush=True)
        for moment in moments:
            began = time.monotonic()
            trained(setting, moment)
            took = time.monotonic() - began
            errors: dict[str, list[str]] = {}
            for way, name in enumerate(WAYS):
                try:
                    check(way, setting, moment)
                except BaseException as error:
                    errors.setdefault(f"{type(error).__name__} {error}"[:300].replace("\n", " "), []).append(name)
            print(f"  {moment.__name__} {took:.1f} s: {sum(map(len, errors.values()))} fail", flush=True)
            for words, names in errors.items():
                print("      ", words, "<-", ", ".join(names))
