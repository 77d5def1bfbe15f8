"""Trainings in Lightning with two loggers beside ours: its CSVLogger, and one that writes down every call."""

import csv
import json
import math
import os
import signal
import warnings
from collections import Counter
from pathlib import Path

import torch
from forks import config_in
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.data import DataLoader

from d9d_tracker import read
from d9d_tracker.integrations.lightning import TrackerCallback, TrackerLogger


class Witness(Logger):
    """Writes each call of ``log_metrics`` to a file at once, so that a killed process has left them all."""

    name, version = "witness", "0"

    def __init__(self, path):
        super().__init__()
        self.path = Path(path)

    def log_metrics(self, metrics, step=None):
        self._write({"step": step, "metrics": {name: float(value) for name, value in metrics.items()}})

    def log_hyperparams(self, params, *args, **kwargs):
        pass

    def after_save_checkpoint(self, checkpoint_callback):
        self._write({"saved": checkpoint_callback.last_model_path or checkpoint_callback.best_model_path})

    def _write(self, line):
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def points(self, before_step=math.inf):
        """What was logged, by name and step: the last value of each, of steps before one."""
        points: dict[str, dict[int, float]] = {}
        for line in map(json.loads, self.path.read_text().splitlines()):
            if "saved" not in line and line["step"] < before_step:
                for name, value in line["metrics"].items():
                    points.setdefault(name, {})[line["step"]] = value
        return points


class Net(LightningModule):
    """Logs in every way that ``self.log`` has; ``own`` is logged by the module itself, with the batch as its value."""

    def __init__(self, val_on_step=False, on_epoch=False, fails_at=None, error=RuntimeError, sparse=False):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 1)
        self.val_on_step, self.on_epoch, self.sparse = val_on_step, on_epoch, sparse
        self.fails_at, self.error = fails_at, error
        self.batches = 0

    def training_step(self, batch, index):
        if self.trainer.fit_loop.epoch_loop.total_batch_idx == self.fails_at:
            raise self.error("as planned")
        loss = self.layer(batch).square().mean()
        self.log("loss", loss, on_step=True, on_epoch=self.on_epoch)
        if self.sparse and index == 1:
            self.log("sometimes", loss * 2)
        self.own(float(self.global_step))
        return loss

    def own(self, value):
        self.logger.experiment.scalar("own", value)

    def validation_step(self, batch, index, dataloader_idx=0):
        self.log("val", self.layer(batch).square().mean(), on_step=self.val_on_step, on_epoch=True)

    def test_step(self, batch, index):
        self.log("test", self.layer(batch).abs().mean(), on_step=self.val_on_step, on_epoch=True)

    def predict_step(self, batch, index):
        return self.layer(batch)

    def on_train_epoch_end(self):
        self.log("at end", float(self.current_epoch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class TwoOptimizers(Net):
    """Optimizes by hand, twice a batch, so that Lightning's ``global_step`` runs twice as fast as its loggers' step."""

    def __init__(self, **options):
        super().__init__(**options)
        self.automatic_optimization = False

    def training_step(self, batch, index):
        if self.trainer.fit_loop.epoch_loop.total_batch_idx == self.fails_at:
            raise self.error("as planned")
        for name, optimizer in zip(("g", "d"), self.optimizers(), strict=True):
            loss = self.layer(batch).square().mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.log(name, loss)
        self.own(float(self.trainer.fit_loop.epoch_loop.total_batch_idx))

    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), 0.1), torch.optim.SGD(self.parameters(), 0.05)]


def data(batches=4, seed=0, size=4):
    return DataLoader(torch.randn(batches * size, 4, generator=torch.Generator().manual_seed(seed)), batch_size=size)


def trainer_of(config, folder, tracker=None, checkpoint=None, callback=True, **options):
    """A trainer with our logger, the witness and a CSVLogger; ``checkpoint`` has a ModelCheckpoint's options."""
    seed_everything(0, verbose=False)
    logger = tracker or TrackerLogger(config, name="line", save_dir=folder / "saved")
    witness = Witness(folder / "witness.jsonl")
    defaults = {
        "max_epochs": 3, "log_every_n_steps": 1, "accelerator": "cpu", "enable_progress_bar": False,
        "enable_model_summary": False, "default_root_dir": folder / "root",
    }  # fmt: skip
    callbacks = [TrackerCallback(logger)] if callback else []
    if checkpoint is not None:
        callbacks.append(ModelCheckpoint(folder / "checkpoints", **checkpoint))
    with warnings.catch_warnings(action="ignore"):
        loggers = [logger, witness, CSVLogger(folder, "csv")]
        return logger, witness, Trainer(logger=loggers, callbacks=callbacks, **{**defaults, **options})


def csv_points(folder):
    """What Lightning's CSVLogger has of its last life, by name and step: the last value of each."""
    points: dict[str, dict[int, float]] = {}
    file = max(folder.glob("csv/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    for row in csv.DictReader(file.open()):
        step = int(row.pop("step"))
        for name, value in row.items():
            if value:
                points.setdefault(name, {})[step] = float(value)
    return points


def stored(folder, run=-1):
    """What a run has, by name and step, without what modules log by themselves; and that."""
    runs = read(folder)
    points = {
        (series.name, *sorted(series.context.items())): dict(
            zip(series.steps.tolist(), series.values.tolist(), strict=True)
        )
        for series in runs[run].load()
        if hasattr(series.values, "tolist")
    }
    own = points.pop(("own",), {})
    return {key[0] if len(key) == 1 else key: value for key, value in points.items()}, own


def counted(histograms):
    """How many values were counted in the bin that each begins."""
    found = Counter()
    for one in histograms.values:
        found.update(dict(zip(one.edges.tolist(), one.counts.tolist(), strict=False)))
    return {value: count for value, count in found.items() if count}


def be_killed(folder, options, at):
    """Train, and be killed before a batch."""
    _, _, trainer = trainer_of(config_in(folder), folder, **options)
    model = Net(on_epoch=True, fails_at=at, error=lambda message: os.kill(os.getpid(), signal.SIGKILL))
    trainer.fit(model, data(), data(2, seed=1))


class Apart(Net):
    """Logs what differs between ranks."""

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        self.log("rank", float(self.global_rank + index))
        self.logger.experiment.bins("values", torch.full((3,), 1.0 + self.global_rank))
        return loss

    def validation_step(self, batch, index, dataloader_idx=0):
        self.log("val rank", float(self.global_rank + index), on_epoch=True)


def be_one_of_two(folder, steps, ckpt_path=None):
    """Train on two ranks."""
    rank = os.environ["RANK"]
    rank_zero_only.rank = int(rank)  # which Lightning reads when it is imported
    logger, witness, trainer = trainer_of(
        config_in(folder), folder, devices=2, strategy="ddp", max_steps=steps, max_epochs=-1,
        checkpoint={"every_n_train_steps": 3, "save_top_k": -1, "filename": "{step}"},
    )  # fmt: skip
    witness.path = folder / f"witness-{rank}.jsonl"
    trainer.fit(Apart(on_epoch=True), data(8), data(4, seed=1), ckpt_path=ckpt_path, weights_only=False)
    trainer.validate(Apart(), data(4, seed=1), verbose=False, ckpt_path=ckpt_path, weights_only=False)
    logger.close()
    torch.distributed.destroy_process_group()
