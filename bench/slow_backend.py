"""(d) The pace of the loop when the backend takes 50 ms per write."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch

from d9d_tracker import AccumulatingTracker, AccumulatorConfig, BaseTracker, BaseTrackerRun, RunConfig, TrackerConfig

from .contenders import Contender, Kind, Nothing, Start, start
from .contenders.packages import Lightning, TensorBoard
from .interleave import Spread, synchronize
from .models import Mlp
from .plan import Plan
from .report import Result, Row
from .training import Training, forward_of

_WRITE_SECONDS = 0.05
_WINDOW = 10


def run(plan: Plan) -> Result:
    """Measure how a slow backend is felt by the loop."""
    steps, rounds = (12, 1) if plan.quick else (40, 3)
    result = Result(
        "d",
        f"The loop's pace when the backend takes {_WRITE_SECONDS * 1e3:.0f} ms per write: {steps} steps, a scalar each",
        {"ms a step": ",.1f", "vs untracked": ".1f", "s until all is written": ".2f"},
        series={"plot": "slow_backend", "stamps": {}},
    )
    with start(_wanted(plan)) as (contenders, missing):
        model = Mlp(1).to(plan.device)
        batch = model.batch(plan.device, 64 if plan.quick else 1024)
        trainings = [
            Training(contender, model, batch, forward_of(model, contender, backend=plan.backend))
            for contender in contenders
        ]
        stamps, ends = _measure(plan, trainings, steps, rounds)
    result.missing = {
        **missing,
        "wandb": "it writes in a process of its own, whose disk cannot be slowed down from here",
    }
    baseline = [round_[-1] for round_ in stamps[Nothing.name]]
    for contender in contenders:
        loops = [round_[-1] for round_ in stamps[contender.name]]
        cells = {
            "ms a step": Spread.of(loops).scaled(1e3 / steps),
            "vs untracked": Spread.of([loop / alone for loop, alone in zip(loops, baseline, strict=True)]),
            "s until all is written": Spread.of(ends[contender.name]) if contender.tracks else None,
        }
        result.rows.append(Row(contender.name, contender.kind, dict(cells), contender.note))
        result.series["stamps"][contender.name] = stamps[contender.name][-1]
    result.remarks = [
        "Nobody makes the backend faster: the last point arrives at the same time for all. What differs is who waits "
        "for it. A backend that is slower than the data for good fills memory (and, once it counts as down, disk)."
    ]
    return result


def _measure(
    plan: Plan, trainings: list[Training], steps: int, rounds: int
) -> tuple[dict[str, list[list[float]]], dict[str, list[float]]]:
    stamps: dict[str, list[list[float]]] = {training.contender.name: [] for training in trainings}
    ends: dict[str, list[float]] = {training.contender.name: [] for training in trainings}
    for training in trainings:
        training.run(2)
        training.contender.settle()
    for _ in range(rounds):
        for training in trainings:
            synchronize(plan.device)
            begin = time.perf_counter()
            passed: list[float] = []
            for _ in range(steps):
                training.run(1)
                passed.append(time.perf_counter() - begin)
            synchronize(plan.device)
            passed[-1] = time.perf_counter() - begin
            training.contender.settle()
            stamps[training.contender.name].append(passed)
            ends[training.contender.name].append(time.perf_counter() - begin)
    return stamps, ends


def _wanted(plan: Plan) -> dict[str, Start]:
    return {
        Nothing.name: Nothing,
        _Direct.name: _Direct,
        _DirectStack.name: _DirectStack,
        "Lightning Fabric log_dict": lambda: _SlowLightning(plan.folder / "slow-lightning"),
        "TensorBoard SummaryWriter": lambda: _SlowTensorBoard(plan.folder / "slow-tensorboard"),
        "d9d_tracker": lambda: _SlowOurs(plan),
    }


def _write() -> None:
    time.sleep(_WRITE_SECONDS)


class _Direct(Contender):
    name = ".item() and a call of the backend"
    kind: Kind = "by hand"

    def scalars(self, values: Mapping[str, torch.Tensor]) -> None:
        for value in values.values():
            value.item()
            _write()


class _DirectStack(Contender):
    name = f"torch.stack every {_WINDOW} steps, then calls"
    kind: Kind = "by hand"

    def __init__(self):
        self.pending: list[torch.Tensor] = []

    def scalars(self, values: Mapping[str, torch.Tensor]) -> None:
        self.pending.extend(values.values())
        if len(self.pending) >= _WINDOW:
            self.settle()

    def settle(self) -> None:
        if self.pending:
            for _ in torch.stack(self.pending).tolist():
                _write()
            self.pending = []


class _SlowLightning(Lightning):
    name = "Lightning Fabric log_dict"

    def __init__(self, folder: Path):
        super().__init__(folder)
        fast = self.logger.log_metrics

        def log_metrics(*arguments: Any, **keywords: Any) -> None:
            _write()
            fast(*arguments, **keywords)

        self.logger.log_metrics = log_metrics


class _SlowTensorBoard(TensorBoard):
    note = "its own thread writes; the loop waits once its queue of 10 is full"

    def __init__(self, folder: Path):
        super().__init__(folder)
        records = self.writer._get_file_writer().event_writer._async_writer._writer  # where its thread meets the disk
        fast = records.write

        def write(data: bytes) -> None:
            _write()
            fast(data)

        records.write = write


class _SlowOurs(Contender):
    name = "d9d_tracker"
    kind: Kind = "ours"
    inside = True
    note = f"a window of {_WINDOW} steps"

    def __init__(self, plan: Plan):
        config = AccumulatorConfig(
            sync_every=_WINDOW, device=plan.device, flush_timeout=600.0, backlog_dir=plan.folder / "slow-backlog"
        )
        self._opened = AccumulatingTracker(_SlowTracker(), config).open(RunConfig(name="slow"))
        self.run = self._opened.__enter__()

    def set_step(self, step: int) -> None:
        self.run.set_step(step)

    def scalars(self, values: Mapping[str, torch.Tensor]) -> None:
        self.run.scalars(values)

    def settle(self) -> None:
        self.run.flush()

    def close(self) -> None:
        self._opened.__exit__(None, None, None)


class _SlowRun(BaseTrackerRun):
    def set_step(self, step: int) -> None:
        pass

    def set_context(self, context: dict[str, str]) -> None:
        pass

    def scalar(self, name: str, value: float | torch.Tensor, context: dict[str, str] | None = None) -> None:
        _write()

    def bins(self, name: str, values: torch.Tensor, context: dict[str, str] | None = None) -> None:
        _write()


class _SlowTracker(BaseTracker[TrackerConfig]):
    @classmethod
    def from_config(cls, config: TrackerConfig) -> Self:
        return cls()

    @contextmanager
    def open(self, properties: RunConfig) -> Iterator[_SlowRun]:
        self.run_id, self.resume_id = properties.name, None
        yield _SlowRun()
