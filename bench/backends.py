"""What writing costs in each backend: points per second and bytes per point, beside the tool's own API in a loop.

``python -m bench.backends`` writes 100 series at 10,000 steps, ``--quick`` a hundredth of that. Ours is the bare
backend as the accumulator uses it: records in the order of their steps, and a flush after every window of 50 steps,
which waits until everything is durable. The tool's own loop is what its documentation shows, closed in the end.
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from d9d_tracker import AimConfig, JsonlTrackerConfig, RunConfig, TrackerConfig, tracker_from_config
from d9d_tracker.provider.mlflow.config import MLflowConfig
from d9d_tracker.provider.tensorboard.config import TensorBoardConfig
from d9d_tracker.provider.wandb.config import WandbConfig
from d9d_tracker.record import Record

from .plan import Plan
from .report import Cell, Result, Row

_WINDOW = 50
_HERE = Path(__file__).parent

Found = dict[str, dict[str, float]]


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
class Backend:
    """A backend: its configuration for a folder, and the tool's own loop."""

    name: str
    config: Callable[[Path], TrackerConfig]
    loop: Callable[[Path, Load], None] | None
    own_api: str


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


PREPARE: dict[str, Callable[[Path], None]] = {
    "mlflow": mlflow_store,
    "mlflow, by rows": mlflow_store,
    "aim": aim_repository,
}

BACKENDS = [
    Backend("jsonl", lambda f: JsonlTrackerConfig(path=f, accumulator=None), None, "none"),
    Backend(
        "aim",
        lambda f: AimConfig(
            repo=str(f),
            log_system_params=False,
            capture_terminal_logs=False,
            system_tracking_interval=None,
            accumulator=None,
        ),
        aim_loop,
        "run.track",
    ),
    Backend(
        "tensorboard",
        lambda f: TensorBoardConfig(log_dir=f, accumulator=None),
        tensorboard_loop,
        "SummaryWriter.add_scalar",
    ),
    Backend("wandb", wandb_config, wandb_loop, "run.log, for every value"),
    Backend("wandb, by rows", wandb_config, wandb_rows, "run.log, once a step"),
    Backend("mlflow", mlflow_config, mlflow_loop, "client.log_metric, for every value"),
    Backend("mlflow, by rows", mlflow_config, mlflow_rows, "client.log_batch, once a step"),
]


def measure(backend: Backend, load: Load, own_load: Load, folder: Path, rounds: int) -> Found:
    """Return points per second and bytes per point of both, as medians of some rounds taken in turns."""
    rates: dict[str, list[float]] = {"ours": [], "own": []}
    sizes: dict[str, float] = {}
    tool = backend.name.partition(",")[0]
    for number in range(rounds):
        for who, part in (("ours", load), ("own", own_load)):
            if who == "own" and backend.loop is None:
                continue
            place = folder / f"{backend.name}-{who}-{number}"
            if tool in PREPARE:
                PREPARE[tool](place)
            before = _bytes(place)
            start = time.perf_counter()
            if who == "ours" or backend.loop is None:
                ours(backend.config(place), part)
            else:
                backend.loop(place, part)
            rates[who].append(part.points / (time.perf_counter() - start))
            sizes[who] = (_bytes(place) - before) / part.points
    return {who: {"points per second": statistics.median(rates[who]), "bytes per point": sizes[who]} for who in sizes}


def run(plan: Plan) -> Result:
    """Measure every backend beside its own API."""
    load = Load(10, 1000) if plan.quick else Load(100, 10_000)
    result = Result(
        "backends",
        f"Writing {load.series} series at {load.steps} steps",
        {"points/s": ",.0f", "own loop": ",.0f", "times": ".2f", "bytes/point": ".1f", "own bytes": ".1f"},
    )
    for backend in BACKENDS:
        is_slow = not backend.name.startswith(("jsonl", "tensorboard"))  # minutes a round
        # MLflow commits every call: a part of the load says how fast that is.
        own = Load(load.series, load.steps // (100 if backend.loop is mlflow_loop else 1))
        found = measure(backend, load, own, plan.folder, rounds=1 if is_slow else 3)
        mine, other = found["ours"], found.get("own")
        cells: dict[str, Cell] = {
            "points/s": mine["points per second"],
            "own loop": other["points per second"] if other else None,
            "times": mine["points per second"] / other["points per second"] if other else None,
            "bytes/point": mine["bytes per point"],
            "own bytes": other["bytes per point"] if other else None,
        }
        result.rows.append(Row(backend.name, "ours", cells, note=f"own loop: {backend.own_api}"))
        result.series[backend.name] = found
    result.remarks.append("times: how much faster than the tool's own loop; 0.91 is the least that is acceptable.")
    return result


def draw(result: Result, path: Path) -> None:
    """Plot points per second of each backend, both ways."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    names = list(result.series)
    for shift, who, label in ((-0.2, "ours", "d9d_tracker"), (0.2, "own", "the tool's own loop")):
        values = [result.series[name].get(who, {}).get("points per second", math.nan) for name in names]
        axes.bar([place + shift for place in range(len(names))], values, width=0.4, label=label)
    axes.set_xticks(range(len(names)), names)
    axes.set_yscale("log")
    axes.set_ylabel("points per second")
    axes.legend()
    figure.savefig(path, dpi=150)


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
    chosen.out.mkdir(parents=True, exist_ok=True)
    draw(result, chosen.out / f"backends{'-quick' * chosen.quick}.png")


if __name__ == "__main__":
    main()
