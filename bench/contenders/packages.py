"""The packages people use instead, as their documentation shows them."""

# pyright: reportMissingImports=false
# These packages take part where they are installed; the development environment lacks some of them.

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .base import EVERY, Contender, Kind


class MeanMetrics(Contender):
    """One torchmetrics ``MeanMetric`` per series, computed and reset every N steps."""

    name = "torchmetrics MeanMetric"
    kind: Kind = "package"
    note = "keeps a mean per N steps, not a point per step; its check for NaN, on by default, waits for the device"

    def __init__(self, device: str):
        from torchmetrics import MeanMetric

        self._new = lambda: MeanMetric().to(device)
        self.metrics: dict[str, MeanMetric] = {}
        self.lists: list[list[float]] = []
        self.steps = 0

    def scalars(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, value in values.items():
            if name not in self.metrics:
                self.metrics[name] = self._new()
            self.metrics[name].update(value)

    def end_step(self) -> None:
        self.steps += 1
        if self.steps % EVERY == 0:
            self.lists.append([metric.compute().item() for metric in self.metrics.values()])
            for metric in self.metrics.values():
                metric.reset()


class D9dPackage(Contender):
    """d9d's own ``TrackerWriter``, over a run that keeps what it is given."""

    name = "d9d TrackerWriter"
    kind: Kind = "package"

    def __init__(self):
        from d9d.loop.component.tracker_writer import PendingTrackerWrites, TrackerWriter
        from d9d.tracker import Scalar

        self.current_step = 0  # d9d's writer reads it here, as from its schedule
        self.kept: list[float] = []
        self._scalar = Scalar
        self._pending = PendingTrackerWrites(self, max_pending_steps=2)
        self._writer = TrackerWriter(self._pending, self, {})

    def write(self, point: Any, value: Any) -> None:
        """Take a value from d9d's writer."""
        self.kept.append(value.value.item())

    def set_step(self, step: int) -> None:
        self.current_step = step

    def scalars(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self._writer.log(name, self._scalar(value=value))

    def settle(self) -> None:
        self._pending.flush()
        self.kept.clear()


class TensorBoard(Contender):
    """``SummaryWriter`` in the loop."""

    name = "TensorBoard SummaryWriter"
    kind: Kind = "package"

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))
        self.step = 0

    def set_step(self, step: int) -> None:
        self.step = step

    def scalars(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, self.step)

    def gradients(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            self.writer.add_histogram(f"gradients/{name}", parameter.grad, self.step)

    def settle(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Wandb(Contender):
    """``run.log`` in offline mode; gradients by ``wandb.watch``."""

    name = "wandb.log (offline)"
    kind: Kind = "package"
    note = "writes in a process of its own, which cannot be waited for"

    def __init__(self, folder: Path):
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(console="off", silent=True, x_disable_stats=True, x_disable_meta=True)
        self.run = wandb.init(project="bench", mode="offline", dir=str(folder), settings=settings)
        self.step = 0
        self.watched: nn.Module | None = None

    def watch(self, model: nn.Module) -> None:
        self.name = "wandb.watch + wandb.log (offline)"
        self.watched = model
        self.run.watch(model, log="gradients", log_freq=1)

    def set_step(self, step: int) -> None:
        self.step = step

    def scalars(self, values: Mapping[str, torch.Tensor]) -> None:
        self.run.log(dict(values), step=self.step)

    def settle(self) -> None:
        if self.watched is not None:
            self.run.unwatch(self.watched)
            self.watched = None

    def close(self) -> None:
        self.run.finish()


class Lightning(Contender):
    """Lightning Fabric's ``log_dict`` with its CSV logger."""

    name = "Lightning Fabric log_dict (CSV)"
    kind: Kind = "package"

    def __init__(self, folder: Path):
        from lightning.fabric import Fabric
        from lightning.fabric.loggers.csv_logs import CSVLogger

        self.logger = CSVLogger(str(folder))
        self.fabric = Fabric(accelerator="cpu", devices=1, loggers=self.logger)
        self.step = 0

    def set_step(self, step: int) -> None:
        self.step = step

    def scalars(self, values: Mapping[str, torch.Tensor]) -> None:
        self.fabric.log_dict(values, self.step)

    def settle(self) -> None:
        self.logger.save()

    def close(self) -> None:
        self.logger.finalize("success")
