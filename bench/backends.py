"""What writing costs in each backend: points per second and bytes per point, beside the tool's own API in a loop.

``python -m bench.backends`` writes 100 series at 10,000 steps, ``--quick`` a hundredth of that. Ours is the bare
backend as the accumulator uses it: records in the order of their steps, and a flush after every window of 50 steps,
which waits until everything is durable. The tool's own loop is what its documentation shows, closed in the end.
"""

import argparse
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from d9d_tracker import AimConfig, JsonlTrackerConfig, RunConfig, TrackerConfig, tracker_from_config
from d9d_tracker.provider.mlflow import MLflowConfig
from d9d_tracker.provider.tensorboard import TensorBoardConfig
from d9d_tracker.provider.wandb import WandbConfig
from d9d_tracker.record import Record

from .plan import Plan
from .report import Cell, Result, Row

_WINDOW = 50
_HERE = Path(__file__).parent
OURS = "d9d_tracker"

Found = dict[str, float]


@dataclass(frozen=True)
class Load:
    """What is written: ``series`` numbers at each of ``steps`` steps."""

    series: int
    steps: int

    @property
    def points(self) -> int:
        return self.series * self.steps

    def row(self, step: int) -> dict[str, float]:
        return {f"layers.{number}/norm": math.sin(step / 50 + number) for number in range(self.series)}


@dataclass(frozen=True)
class Loop:
    """A tool's own API in a loop.

    Attributes:
        api: What is called.
        write: Writes a load to a folder.
        share: Does one of so many steps only, where the whole would take an hour.
    """

    api: str
    write: Callable[[Path, Load], None]
    share: int = 1


@dataclass(frozen=True)
class Backend:
    """A backend: its configuration for a folder, and what else writes with the same tool."""

    name: str
    config: Callable[[Path], TrackerConfig]
    loops: tuple[Loop, ...] = ()
    prepare: Callable[[Path], None] = lambda folder: None


def ours(config: TrackerConfig, load: Load) -> None:
    with tracker_from_config(config).open(RunConfig(name="bench")) as run:
        for first in range(0, load.steps, _WINDOW):
            steps = range(first, min(first + _WINDOW, load.steps))
            run.write([Record(name, step, {}, value) for step in steps for name, value in load.row(step).items()])
            run.flush()


def aim_loop(folder: Path, load: Load) -> None:
    import aim

    run = aim.Run(repo=str(folder), log_system_params=False, capture_terminal_logs=False, system_tracking_interval=None)
    for step in range(load.steps):
        for name, value in load.row(step).items():
            run.track(value, name=name, step=step)
    run.close()


def tensorboard_loop(folder: Path, load: Load) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    for step in range(load.steps):
        for name, value in load.row(step).items():
            writer.add_scalar(name, value, step)
    writer.close()


def wandb_loop(folder: Path, load: Load) -> None:
    run = start_wandb(folder)
    for step in range(load.steps):
        for name, value in load.row(step).items():
            run.log({name: value}, step=step)
    run.finish()


def wandb_rows(folder: Path, load: Load) -> None:
    run = start_wandb(folder)
    for step in range(load.steps):
        run.log(load.row(step), step=step)
    run.finish()


def start_wandb(folder: Path) -> Any:
    import wandb

    folder.mkdir()
    return wandb.init(project="bench", mode="offline", dir=str(folder), reinit="create_new")


def mlflow_loop(folder: Path, load: Load) -> None:
    client, run_id = start_mlflow(folder)
    for step in range(load.steps):
        for name, value in load.row(step).items():
            client.log_metric(run_id, name, value, step=step)
    client.set_terminated(run_id)


def mlflow_rows(folder: Path, load: Load) -> None:
    from mlflow.entities import Metric

    client, run_id = start_mlflow(folder)
    for step in range(load.steps):
        now = round(time.time() * 1000)
        client.log_batch(run_id, [Metric(name, value, now, step) for name, value in load.row(step).items()])
    client.set_terminated(run_id)


def start_mlflow(folder: Path) -> tuple[Any, str]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    return client, client.create_run(client.create_experiment("bench")).info.run_id


def mlflow_store(folder: Path) -> None:
    """Make MLflow's tables, which takes seconds, before the clock runs."""
    from mlflow import MlflowClient

    folder.mkdir(exist_ok=True)
    MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db").search_experiments()


def aim_repository(folder: Path) -> None:
    import aim

    aim.Repo.from_path(str(folder), init=True)


def wandb_config(folder: Path) -> TrackerConfig:
    return WandbConfig(project="bench", mode="offline", dir=folder, accumulator=None)


def mlflow_config(folder: Path) -> TrackerConfig:
    return MLflowConfig(experiment="bench", tracking_uri=f"sqlite:///{folder}/mlflow.db", accumulator=None)


BACKENDS = [
    Backend("jsonl", lambda f: JsonlTrackerConfig(path=f, accumulator=None)),
    Backend(
        "aim",
        lambda f: AimConfig(
            repo=str(f),
            log_system_params=False,
            capture_terminal_logs=False,
            system_tracking_interval=None,
            accumulator=None,
        ),
        (Loop("Run.track", aim_loop),),
        aim_repository,
    ),
    Backend(
        "tensorboard",
        lambda f: TensorBoardConfig(log_dir=f, accumulator=None),
        (Loop("SummaryWriter.add_scalar", tensorboard_loop),),
    ),
    Backend(
        "wandb",
        wandb_config,
        (Loop("Run.log of a value", wandb_loop, share=10), Loop("Run.log of a step", wandb_rows)),
    ),
    Backend(
        "mlflow",
        mlflow_config,
        (Loop("log_metric", mlflow_loop, share=100), Loop("log_batch of a step", mlflow_rows)),
        mlflow_store,
    ),
]


def measure(backend: Backend, load: Load, folder: Path, rounds: int) -> dict[str, Found]:
    """Return points per second (medians of rounds taken in turns) and bytes per point, of ours and of each loop."""
    writers: dict[str, tuple[Callable[[Path, Load], None], Load]] = {
        OURS: (lambda place, part: ours(backend.config(place), part), load)
    }
    for loop in backend.loops:
        writers[loop.api] = (loop.write, Load(load.series, load.steps // loop.share))
    rates: dict[str, list[float]] = {name: [] for name in writers}
    sizes: dict[str, float] = {}
    for number in range(rounds):
        for name, (write, part) in writers.items():
            place = folder / f"{backend.name}-{name}-{number}"
            backend.prepare(place)
            before = _bytes(place)
            start = time.perf_counter()
            write(place, part)
            rates[name].append(part.points / (time.perf_counter() - start))
            sizes[name] = (_bytes(place) - before) / part.points
            shutil.rmtree(place)
    return {
        name: {"points per second": statistics.median(rates[name]), "bytes per point": sizes[name]} for name in writers
    }


def run(plan: Plan) -> Result:
    """Measure every backend beside its own API."""
    load = Load(10, 1000) if plan.quick else Load(100, 10_000)
    result = Result(
        "backends",
        f"Writing {load.series} series at {load.steps:,} steps",
        {"points a second": ",.0f", "ours, times as fast": ".2f", "bytes a point": ".1f"},
    )
    for backend in BACKENDS:
        is_fast = backend.name in ("jsonl", "tensorboard")  # the others take minutes a round
        found = measure(backend, load, plan.folder, rounds=3 if is_fast else 1)
        for name, figures in found.items():
            cells: dict[str, Cell] = {
                "points a second": figures["points per second"],
                "ours, times as fast": None
                if name == OURS
                else found[OURS]["points per second"] / figures["points per second"],
                "bytes a point": figures["bytes per point"],
            }
            result.rows.append(Row(name, "ours" if name == OURS else "package", cells, group=backend.name))
        result.series[backend.name] = found
    result.remarks.append(
        "W&B's loop by steps is not slowed down by waiting: ours has every window of 50 steps confirmed to be on disk "
        "before it takes the next one."
    )
    return result


def draw(result: Result, path: Path) -> None:
    """Plot points per second of each backend and of its tool's own loops."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    labels: list[str] = []
    for backend, found in result.series.items():
        for name, figures in found.items():
            is_ours = name == OURS
            axes.barh(len(labels), figures["points per second"], color="#e8590c" if is_ours else "#7b8794")
            labels.append(f"{name} → {backend}" if is_ours else f"{backend}: {name}")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("points a second")
    axes.set_title(result.title, loc="left")
    figure.savefig(path, dpi=120)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    from rich.console import Console

    from . import report

    parser = argparse.ArgumentParser(prog="python -m bench.backends", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the load")
    parser.add_argument("--out", type=Path, default=_HERE / "results", help="folder of the plot")
    chosen = parser.parse_args()
    os.environ |= {"WANDB_SILENT": "true", "MLFLOW_LOGGING_LEVEL": "ERROR"}
    with TemporaryDirectory(prefix="d9d_tracker-bench-") as folder:
        result = run(Plan("cpu", chosen.quick, Path(folder)))
    report.show(Console(), result)
    about = report.machine("cpu")
    name = f"{about['date'][:10]}-backends{'-quick' * chosen.quick}"
    report.write_json(chosen.out / f"{name}.json", about, [result])
    draw(result, chosen.out / f"{name}.png")


if __name__ == "__main__":
    main()
