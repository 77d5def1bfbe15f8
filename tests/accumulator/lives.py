"""Lives of one run: a fixed program of calls, played from any call on, over backends that outlive the tracker."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from d9d_tracker import AccumulatingTracker, AccumulatorConfig
from d9d_tracker.provider.jsonl import JsonlTracker, JsonlTrackerConfig
from d9d_tracker.record import Histogram, Record
from d9d_tracker.testing import RecordingRun, RecordingTracker
from tests.run_files import read_run

Call = Callable[[Any], None]


def program(steps: int = 11, flush_in: tuple[int, ...] = (4, 9)) -> list[Call]:
    """Return calls on a run: every reduction, contexts, sparse series, flushes in the middle of a step."""
    calls: list[Call] = []
    for step in range(steps):
        values = torch.randn(7, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        calls.append(lambda run, step=step: run.set_step(step))
        calls.append(lambda run, values=values: run.scalar("mean", values[0], {"stage": "train"}, weight=0.1))
        calls.append(lambda run, values=values: run.bins("values", values))
        if step % 3 == 0:
            calls.append(lambda run, values=values: run.bins("rare", values[:2], {"stage": "eval"}))
        if step in flush_in:
            calls.append(lambda run: run.flush())
            calls.append(lambda run, values=values: run.scalar("after", values[1], reduce="max"))
            calls.append(lambda run: run.flush())
        calls.append(lambda run, values=values: run.scalar("mean", values[2], {"stage": "train"}, weight=0.7))
        calls.append(lambda run, values=values: run.scalar("sum", values[3], reduce="sum"))
    return calls


class Recordings:
    """The recording backend, whose runs outlive their trackers."""

    def __init__(self, folder: Path):
        self.runs: dict[str, RecordingRun] = {}

    def tracker(self, **config: Any) -> AccumulatingTracker:
        backend = RecordingTracker()
        backend.runs = self.runs
        return AccumulatingTracker(backend, AccumulatorConfig(**config))

    def cut_off(self) -> Callable[[], None]:
        """Remember what a killed process would leave; the function returned brings it back."""
        records = {run_id: list(run.records) for run_id, run in self.runs.items()}

        def restore() -> None:
            for run_id, kept in records.items():
                self.runs[run_id].records[:] = kept

        return restore

    def records(self) -> list[Record]:
        (run,) = self.runs.values()
        return run.records


class Files:
    """The backend of JSON lines."""

    def __init__(self, folder: Path):
        self.folder = folder / "runs"

    def tracker(self, **config: Any) -> AccumulatingTracker:
        return AccumulatingTracker(JsonlTracker(JsonlTrackerConfig(path=self.folder)), AccumulatorConfig(**config))

    def cut_off(self) -> Callable[[], None]:
        """See `Recordings`."""
        contents = {path: path.read_bytes() for path in self.folder.iterdir()}

        def restore() -> None:
            for path, content in contents.items():
                path.write_bytes(content)

        return restore

    def records(self) -> list[Record]:
        (path,) = self.folder.iterdir()
        return read_run(path)[1]

    def lines(self) -> list[str]:
        (path,) = self.folder.iterdir()
        return re.sub(r',"time":[0-9.]+', "", path.read_text()).splitlines()[1:]


def content(records: list[Record]) -> dict[Any, str]:
    """Return the bits of every point; of several of one series and step, the last."""
    return {(type(r.value).__name__, r.name, r.step, *sorted(r.context.items())): _bits(r.value) for r in records}


def _bits(value: float | Histogram) -> str:
    if isinstance(value, float):
        return value.hex()
    parts = {field: getattr(value, field) for field in Histogram.__slots__}
    return repr({key: part.tolist() if hasattr(part, "tolist") else part for key, part in parts.items()})
