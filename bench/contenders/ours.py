"""d9d_tracker with each of its backends."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter
from torch import nn

from d9d_tracker import (
    AccumulatingRun,
    AccumulatingTracker,
    AnyTrackerConfig,
    RunConfig,
    TrackerConfig,
    tracker_from_config,
)

from .base import EVERY, Contender, Kind

BACKENDS = ("null", "jsonl", "aim", "tensorboard", "wandb", "mlflow")
# Where a backend is not by default, measured as well; each with the words for it.
ELSEWHERE: dict[str, Literal["thread", "process"]] = {
    "jsonl": "process",
    "aim": "thread",
    "wandb": "process",
    "mlflow": "thread",
}
PLACES = {"thread": "on a thread", "process": "in a process"}


class Ours(Contender):
    """d9d_tracker: ``run.scalars`` inside the compiled step, ``run.watch`` for gradients.

    Args:
        config: The backend's configuration.
        name: What to call it.
        note: What a reader must know.
    """

    kind: Kind = "ours"
    inside = True

    def __init__(self, config: TrackerConfig, name: str = "", note: str = ""):
        self.name = name or f"d9d_tracker → {getattr(config, 'provider', 'backend')}"
        self.note = note
        tracker = tracker_from_config(config)
        assert isinstance(tracker, AccumulatingTracker)
        self.tracker = tracker
        self._stack = ExitStack()
        self.run: AccumulatingRun = self._stack.enter_context(tracker.open(RunConfig(name="bench")))
        self._watch: Any = None

    def watch(self, model: nn.Module) -> None:
        self._watch = self.run.watch(model, gradients=True, every=1)

    def set_step(self, step: int) -> None:
        self.run.set_step(step)

    def scalars(self, values: Mapping[str, torch.Tensor]) -> None:
        self.run.scalars(values)

    def settle(self) -> None:
        if self._watch is not None:
            self._watch.remove()
            self._watch = None
        self.run.flush()

    def close(self) -> None:
        self._stack.close()


def configure(
    provider: str, folder: Path, device: str, every: int = EVERY, writer: Literal["auto", "thread", "process"] = "auto"
) -> TrackerConfig:
    """Return the configuration of a backend that writes into a folder.

    Args:
        provider: Name of the backend.
        folder: Where it writes.
        device: Where the values are.
        every: Steps in a window.
        writer: Where the backend runs.

    Raises:
        pydantic.ValidationError: If there is no such backend.
    """
    where: dict[str, dict[str, Any]] = {
        "null": {},
        "jsonl": {"path": folder},
        "aim": {"repo": str(folder), "capture_terminal_logs": False},
        "tensorboard": {"log_dir": folder},
        "wandb": {"project": "bench", "mode": "offline", "dir": folder},
        "mlflow": {"experiment": "bench", "tracking_uri": f"sqlite:///{folder}/mlflow.db"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    accumulator = {
        "sync_every": every,
        "device": device,
        "flush_timeout": 600.0,
        "backlog_dir": folder / "backlog",
        "writer": writer,
    }
    return TypeAdapter(AnyTrackerConfig).validate_python(
        {"provider": provider, **where[provider], "accumulator": accumulator}
    )
