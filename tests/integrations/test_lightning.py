"""Lightning trains, evaluates, saves, stops and goes on: one run, exact values at its own steps."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from d9d_tracker.integrations.lightning import TrackerCallback, TrackerLogger

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS, BATCH = 24, 4


class Line(LightningModule):
    """A linear model that logs its loss by Lightning, and its outputs from its own forward."""

    def __init__(self, fails_at=None, compiled=False):
        super().__init__()
        self.save_hyperparameters({"lr": 0.1})
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(2, 1)
        self.fails_at = fails_at
        self.loss = torch.compile(self.loss_of, fullgraph=True, backend="eager") if compiled else self.loss_of
        self.losses, self.gradients = {}, {}

    def loss_of(self, batch):
        outputs = self.layer(batch[0])
        self.logger.experiment.bins("outputs", outputs)
        return (outputs - batch[1]).square().mean()

    def training_step(self, batch, index):
        if self.global_step == self.fails_at:
            raise RuntimeError("as planned")
        loss = self.loss(batch)
        self.log("loss", loss)
        self.losses[self.global_step] = loss.item()
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch, index):
        self.log("test_loss", self.loss(batch))

    def on_before_optimizer_step(self, optimizer):
        self.gradients[self.global_step] = self.layer.weight.grad.abs().max().item()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data():
    inputs = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=BATCH)


def fit(logger, tmp_path, model, ckpt_path=None, callback=None, saving=None, **options):
    seed_everything(0)
    trainer = Trainer(
        **{"max_epochs": 2, **options},
        logger=logger,
        callbacks=[
            callback or TrackerCallback(logger),
            ModelCheckpoint(tmp_path / "checkpoints", save_top_k=-1, filename="{step}", **(saving or {})),
        ],
        accelerator="cpu",
        default_root_dir=tmp_path / "root",
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings(action="ignore"):
        trainer.fit(model, data(), data(), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("compiled", [False, True])
def test_fit_validate_and_test_are_one_run(config, stored, tmp_path, compiled):
    logger = TrackerLogger(config, name="line", description="fits a line")
    model = Line(compiled=compiled)
    trainer = fit(logger, tmp_path, model)
    trainer.validate(model, data(), verbose=False)
    trainer.test(model, data(), verbose=False)
    logger.log_hyperparams({"late": 1})
    logger.close()
    run, points = stored()
    assert (run["name"], run["description"], run["hparams"]) == ("line", "fits a line", {"lr": 0.1, "late": 1})
    assert trainer.log_dir == str(tmp_path / "root" / "line" / logger.version)
    assert points["loss",] == pytest.approx(model.losses, abs=0)
    assert set(points["val_loss",]) == {5, 11, 12}  # within fit at the epoch's last step, and by validate after it
    assert set(points["test_loss",]) == {12}
    # In training: two windows of six steps; the validation is apart, and the sanity check is too.
    assert sum(points["outputs",].values()) == 2 * ROWS
    assert sum(points["outputs", ("stage", "validate")].values()) == 3 * ROWS
    assert sum(points["outputs", ("stage", "sanity_check")].values()) == 2 * BATCH
    assert sum(points["outputs", ("stage", "test")].values()) == ROWS


@pytest.mark.parametrize("saving", [{"every_n_train_steps": 3}, {"every_n_epochs": 1}])
def test_a_run_that_was_stopped_goes_on(config, stored, tmp_path, saving):
    whole = Line()
    logger = TrackerLogger(config.model_copy(update={"path": tmp_path / "whole"}))
    fit(logger, tmp_path / "a", whole, saving=saving)
    logger.close()

    logger = TrackerLogger(config)
    with pytest.raises(RuntimeError, match="as planned"):
        fit(logger, tmp_path, Line(fails_at=8), saving=saving)
    assert not logger.tracked.is_open
    logger = TrackerLogger(config)
    fit(logger, tmp_path, Line(), tmp_path / "checkpoints" / "step=6.ckpt", saving=saving)
    logger.close()
    points, expected = stored()[1], stored("whole")[1]
    assert points["loss",] == pytest.approx(whole.losses, abs=0)
    assert sum(points["outputs",].values()) == sum(expected["outputs",].values())
    if "every_n_train_steps" in saving:
        # Saved before the validation that ends the epoch, which Lightning does not repeat.
        del expected["val_loss",][5]
    assert points["val_loss",] == expected["val_loss",]
    assert points["epoch",] == expected["epoch",]


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.01}])
def test_watched_gradients_are_those_that_the_optimizer_used(config, tmp_path, options):
    logger = TrackerLogger(config)
    model = Line()
    seen = {}
    step = torch.optim.SGD.step

    class Noting(torch.optim.SGD):
        def step(self, closure=None):
            result = step(self, closure)
            seen[model.global_step] = model.layer.weight.grad.abs().max().item()
            return result

    model.configure_optimizers = lambda: Noting(model.parameters(), lr=0.1)
    fit(logger, tmp_path, model, callback=TrackerCallback(logger, gradients=True), max_epochs=1, **options)
    logger.close()
    from d9d_tracker import read

    (run,) = read(tmp_path / "runs")
    gradients = run.histograms("gradients/layer.weight")
    steps = 6 // options.get("accumulate_grad_batches", 1)
    assert sum(one.count for one in gradients.values) == 2 * steps
    assert max(one.abs_max for one in gradients.values) == pytest.approx(max(seen.values()), abs=0)
    assert len(seen) == steps


def test_it_is_one_of_several_loggers_and_may_be_left_alone(config, stored, tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    logger = TrackerLogger(config)
    trainer = Trainer(
        logger=[CSVLogger(tmp_path / "csv"), logger], max_steps=3, accelerator="cpu", log_every_n_steps=2,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, limit_val_batches=0,
    )  # fmt: skip
    model = Line()
    model.loss_of = lambda batch: model.layer(batch[0]).mean()
    model.loss = model.loss_of
    trainer.fit(model, data())
    logger.close()
    assert set(stored()[1]["loss",]) == {1}


class Looking(Line):
    """Logs to ``self.logger.experiment`` wherever Lightning calls it."""

    def loss_of(self, batch):
        outputs = self.layer(batch[0])
        self.logger.experiment.bins("outputs", outputs)
        self.logger.experiment.scalar("own", 1.0)
        return (outputs - batch[1]).square().mean()


def test_nothing_is_logged_and_no_run_opened_in_a_fast_dev_run(config, tmp_path, caplog):
    logger = TrackerLogger(config)
    trainer = Trainer(logger=logger, callbacks=[TrackerCallback(logger, gradients=True)], fast_dev_run=True,
                      accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(Looking(), data(), data())
    trainer.test(Looking(), data(), verbose=False)
    logger.close()
    assert not (tmp_path / "runs").exists()
    assert "does nothing" not in caplog.text


def test_the_callback_does_nothing_if_the_trainer_has_another_logger(config, tmp_path, caplog):
    other, used = TrackerLogger(config, name="other"), TrackerLogger(config, name="used")
    fit(used, tmp_path, Line(), callback=TrackerCallback(other, gradients=True), max_epochs=1)
    used.close()
    assert not other.tracked.is_open
    assert "its logger is not one of" in caplog.text


def test_the_callback_finds_the_logger_by_itself(config, stored, tmp_path):
    logger = TrackerLogger(config)
    fit(logger, tmp_path, Line(), callback=TrackerCallback(gradients=True), max_epochs=1)
    logger.close()
    assert sum(stored()[1]["gradients/layer.weight",].values()) == 2 * ROWS // BATCH


@pytest.mark.parametrize("compiled", [False, True])
def test_without_the_callback_the_experiment_is_a_run(config, stored, tmp_path, compiled):
    logger = TrackerLogger(config)
    trainer = Trainer(logger=logger, max_epochs=1, accelerator="cpu", log_every_n_steps=1, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0)  # fmt: skip
    model = Line()
    if compiled:
        model.loss = torch.compile(model.loss_of, fullgraph=True, backend="eager")
    trainer.fit(model, data())
    logger.close()
    assert sum(stored()[1]["outputs",].values()) == ROWS
    assert set(stored()[1]["loss",]) == set(range(6))


def test_the_context_of_the_user_is_added_to_and_given_back(config, stored, tmp_path):
    logger = TrackerLogger(config)
    logger.experiment.set_context({"fold": "1", "stage": "mine"})
    assert not logger.tracked.is_open
    model = Looking()
    trainer = fit(logger, tmp_path, model, max_epochs=1)
    assert logger.run.get_context() == {"fold": "1", "stage": "mine"}
    trainer.test(model, data(), verbose=False)
    logger.close()
    trainer.test(model, data(), verbose=False)  # the run again, and its context
    logger.close()
    points = stored()[1]
    assert set(points["own", ("fold", "1"), ("stage", "mine")]) == set(range(6))
    assert set(points["own", ("fold", "1"), ("stage", "validate")]) == {5}
    assert set(points["own", ("fold", "1"), ("stage", "test")]) == {6}
    assert {key[0] for key in points if len(key) == 1} == {"loss", "epoch", "val_loss", "test_loss"}


def test_two_lives_have_two_folders_and_the_trainer_knows_them(config, tmp_path):
    folders = []
    for _ in range(2):
        logger = TrackerLogger(config, name="line", save_dir=tmp_path / "saved")
        trainer = Trainer(logger=logger, callbacks=[TrackerCallback(logger)], max_steps=1, accelerator="cpu",
                          enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
        trainer.fit(Line(), data())
        logger.close()
        assert trainer.checkpoint_callback.best_model_path.startswith(f"{trainer.log_dir}/checkpoints/")
        folders.append(trainer.log_dir)
    assert len(set(folders)) == 2
    assert all(folder.startswith(str(tmp_path / "saved" / "line")) for folder in folders)
    logger = TrackerLogger(config, name="line", version="by name", save_dir="here")
    assert (logger.name, logger.version, logger.log_dir) == ("line", "by name", "here/line/by name")


def test_names_have_a_prefix(config, stored, tmp_path):
    logger = TrackerLogger(config, prefix="teacher")
    fit(logger, tmp_path, Line(), max_epochs=1, saving={"every_n_train_steps": 1})
    logger.close()
    assert {"teacher-loss", "teacher-val_loss", "teacher-epoch"} == {key[0] for key in stored()[1]} - {"outputs"}


def test_each_package_has_classes_of_its_own(stored, tmp_path):
    program = """
import lightning.pytorch, pytorch_lightning
from d9d_tracker.integrations import lightning as ours, pytorch_lightning as theirs
assert issubclass(ours.TrackerLogger, lightning.pytorch.loggers.Logger)
assert issubclass(ours.TrackerCallback, lightning.pytorch.Callback)
assert issubclass(theirs.TrackerLogger, pytorch_lightning.loggers.Logger)
assert issubclass(theirs.TrackerCallback, pytorch_lightning.Callback)
assert not issubclass(ours.TrackerLogger, pytorch_lightning.loggers.Logger)

import sys, torch
class Model(pytorch_lightning.LightningModule):
    def training_step(self, batch, index):
        self.log("loss", float(index))
    def configure_optimizers(self):
        return None
    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.zeros(4, 1))
logger = theirs.TrackerLogger({"provider": "jsonl", "path": sys.argv[1]})
trainer = pytorch_lightning.Trainer(logger=logger, callbacks=[theirs.TrackerCallback()], max_epochs=1,
                                    log_every_n_steps=1, accelerator="cpu", default_root_dir=sys.argv[1])
trainer.fit(Model())
logger.close()
"""
    command = [sys.executable, "-c", program, str(tmp_path / "runs")]
    subprocess.run(command, check=True, timeout=200, cwd=Path(__file__).parents[2])
    assert stored()[1]["loss",] == {step: float(step) for step in range(4)}


def test_plain_data_is_a_configuration_too(tmp_path):
    logger = TrackerLogger({"provider": "jsonl", "path": str(tmp_path / "runs")})
    logger.log_metrics({"loss": 1.0}, 0)
    logger.close()
    assert len(list((tmp_path / "runs").glob("*.jsonl"))) == 1


def test_how_a_run_has_failed_is_told(config, tmp_path, caplog):
    logger = TrackerLogger(config, name="line")
    with pytest.raises(RuntimeError, match="as planned"):
        fit(logger, tmp_path, Line(fails_at=2))
    assert "run 'line' was ended at step 2 by RuntimeError: as planned" in caplog.text


def test_each_of_several_loggers_goes_on_with_its_run(config, tmp_path):
    from d9d_tracker import read

    def train(epochs, ckpt_path=None):
        paths = [tmp_path / "one", tmp_path / "other"]
        loggers = [TrackerLogger(config.model_copy(update={"path": path}), name=path.name) for path in paths]
        saving = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=3, save_top_k=-1, filename="{step}")
        trainer = Trainer(logger=loggers, callbacks=[*map(TrackerCallback, loggers), saving], max_epochs=epochs,
                          accelerator="cpu", default_root_dir=tmp_path / "root", log_every_n_steps=1,
                          enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
        trainer.fit(Line(), data(), ckpt_path=ckpt_path)
        for logger in loggers:
            logger.close()

    train(1)
    train(2, tmp_path / "checkpoints" / "step=6.ckpt")
    for name in ("one", "other"):
        (run,) = read(tmp_path / name)
        assert run.name == name
        assert run.scalars("loss").steps.tolist() == list(range(12))
