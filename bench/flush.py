"""(e) Points per second, from the device to durable JSON lines."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from .contenders import Ours, configure
from .contenders.packages import TensorBoard
from .interleave import Spread
from .plan import Plan
from .report import Result, Row, losses


def run(plan: Plan) -> Result:
    """Measure how fast a full window is written."""
    series, steps, histograms, rounds = (3, 5, 2, 2) if plan.quick else (100, 200, 100, 5)
    result = Result(
        "e",
        f"From the device to the file: {series} scalar series of {steps} steps, and {histograms} histograms",
        {"scalars a second": ",.0f", "histograms a second": ",.0f"},
        series={"plot": "flush"},
    )
    values = torch.randn(series, device=plan.device)
    population = torch.randn(1000 if plan.quick else 100_000, device=plan.device)
    writers: dict[str, tuple[str, Callable[[], tuple[float, float | None]], str]] = {
        "json.dumps per point": (
            "by hand",
            lambda: (_by_hand(plan.folder / "plain.jsonl", values, steps), None),
            "JSON from Python's own encoder: values on the host already, one fsync in the end",
        ),
        "d9d_tracker → jsonl": (
            "ours",
            lambda: _ours(plan, values, population, steps, histograms),
            "only flush() is timed: copy, merge, JSON with checks, fsync; the loop does not wait for it",
        ),
    }
    try:
        import tensorboard  # noqa: F401 whether it is installed
    except ImportError:
        result.missing["TensorBoard SummaryWriter"] = "not installed (tensorboard)"
    else:
        writers["TensorBoard SummaryWriter"] = (
            "package",
            lambda: _tensorboard(plan, values, population, steps, histograms),
            "all calls and flush() are timed, because the loop waits for them; histograms are binned on the host",
        )
    samples: dict[str, list[tuple[float, float | None]]] = {name: [] for name in writers}
    for _ in range(rounds):
        for name, (_, write, _) in writers.items():
            samples[name].append(write())
    for name, (kind, _, note) in writers.items():
        counts = [sample[1] for sample in samples[name] if sample[1] is not None]
        cells = {
            "scalars a second": Spread.of([series * steps / seconds for seconds, _ in samples[name]]),
            "histograms a second": Spread.of([histograms / seconds for seconds in counts]) if counts else None,
        }
        result.rows.append(Row(name, kind, dict(cells), note))
    result.remarks = [
        *losses(
            result.rows,
            "scalars a second",
            "d9d_tracker → jsonl",
            "d9d_tracker merges states and checks every record on the way; all of it off the training thread.",
            highest=True,
        ),
        *losses(
            result.rows,
            "histograms a second",
            "d9d_tracker → jsonl",
            "d9d_tracker writes up to 2048 exact bins as text, TensorBoard some thirty as binary.",
            highest=True,
        ),
    ]
    return result


def _by_hand(path: Path, values: torch.Tensor, steps: int) -> float:
    numbers = values.tolist()
    start = time.perf_counter()
    with path.open("w") as file:
        for step in range(steps):
            for index, number in enumerate(numbers):
                line = {"name": f"value/{index}", "step": step, "context": {}, "value": number}
                file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - start


def _ours(
    plan: Plan, values: torch.Tensor, population: torch.Tensor, steps: int, histograms: int
) -> tuple[float, float]:
    ours = Ours(configure("jsonl", plan.folder / "flush", plan.device, every=10 * steps))
    try:
        for step in range(steps):
            ours.run.set_step(step)
            ours.run.scalars({f"value/{index}": value for index, value in enumerate(values.unbind())})
        start = time.perf_counter()
        ours.run.flush()
        scalar_seconds = time.perf_counter() - start
        for index in range(histograms):
            ours.run.bins(f"histogram/{index}", population)
        start = time.perf_counter()
        ours.run.flush()
        return scalar_seconds, time.perf_counter() - start
    finally:
        ours.close()


def _tensorboard(
    plan: Plan, values: torch.Tensor, population: torch.Tensor, steps: int, histograms: int
) -> tuple[float, float]:
    board = TensorBoard(plan.folder / "flush-tensorboard")
    named = {f"value/{index}": value for index, value in enumerate(values.unbind())}
    try:
        start = time.perf_counter()
        for step in range(steps):
            board.set_step(step)
            board.scalars(named)
        board.settle()
        scalar_seconds = time.perf_counter() - start
        start = time.perf_counter()
        for index in range(histograms):
            board.writer.add_histogram(f"histogram/{index}", population, steps)
        board.settle()
        return scalar_seconds, time.perf_counter() - start
    finally:
        board.close()
