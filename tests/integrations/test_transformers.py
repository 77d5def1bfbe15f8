"""Hugging Face's Trainer trains, evaluates, saves, stops and goes on: one run, exact values at its own steps."""

import dataclasses
import json
import math

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from d9d_tracker.integrations.transformers import TrackerCallback

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS, BATCH = 24, 4


class Line(torch.nn.Module):
    """A linear model that logs its outputs by itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(2, 1)
        self.callback = None
        self.breaks_at = None

    def forward(self, inputs, labels):
        outputs = self.layer(inputs)
        if self.training:
            self.callback.run.bins("outputs", outputs)
            self.callback.run.scalar("own loss", (outputs.detach() - labels).square().mean())
        loss = (outputs - labels).square().mean()
        return {"loss": loss * math.nan if self.breaks_at == self.callback.tracked.step else loss, "logits": outputs}


class Failing(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise RuntimeError("as planned")


def data():
    inputs = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(0))
    return [{"inputs": row, "labels": row.sum(0, keepdim=True)} for row in inputs]


def trainer_of(callback, folder, fails_at=None, model=None, **options):
    model = model or Line()
    model.callback = callback
    defaults = {
        "num_train_epochs": 2, "logging_steps": 1, "save_steps": 4, "eval_strategy": "epoch",
        "per_device_train_batch_size": BATCH, "learning_rate": 0.1, "optim": "sgd",
    }  # fmt: skip
    args = TrainingArguments(
        output_dir=str(folder), report_to=[], use_cpu=True, disable_tqdm=True, seed=0, **{**defaults, **options}
    )
    callbacks = [callback, *([Failing(fails_at)] if fails_at else [])]
    return Trainer(model=model, args=args, train_dataset=data(), eval_dataset=data(), callbacks=callbacks)


def logged(folder, name):
    """What the Trainer has logged, as it keeps it itself."""
    (state,) = sorted(folder.glob("checkpoint-12/trainer_state.json"))
    return {one["step"]: one[name] for one in json.loads(state.read_text())["log_history"] if name in one}


def test_train_and_evaluate_are_one_run(config, stored, tmp_path):
    callback = TrackerCallback(config, name="line")
    trainer = trainer_of(callback, tmp_path / "out", save_steps=12)
    trainer.train()
    metrics = trainer.evaluate()
    callback.close()
    run, points = stored()
    assert run["name"] == "line"
    assert run["hparams"]["args"]["learning_rate"] == 0.1
    history = {one["step"]: one["loss"] for one in trainer.state.log_history if "loss" in one}
    assert points["loss",] == history
    assert set(history) == set(range(1, 13))
    # What the model logs of a step is at the step at which the Trainer logs it.
    assert points["own loss",] == pytest.approx(history, abs=1e-3)
    assert set(points["eval_loss",]) == {6, 12}
    assert points["eval_loss",][12] == pytest.approx(metrics["eval_loss"], abs=0)
    assert sum(points["outputs",].values()) == 2 * ROWS


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2, "num_train_epochs": 4}])
def test_a_run_that_was_stopped_goes_on(config, stored, tmp_path, options):
    callback = TrackerCallback(config.model_copy(update={"path": tmp_path / "whole"}))
    trainer_of(callback, tmp_path / "other", **options).train()
    callback.close()

    callback = TrackerCallback(config)
    with pytest.raises(RuntimeError, match="as planned"):
        trainer_of(callback, tmp_path / "out", fails_at=7, **options).train()
    assert callback.tracked.is_open  # the Trainer says nothing when training raises; at exit it is closed
    callback.close()
    callback = TrackerCallback(config)
    trainer_of(callback, tmp_path / "out", **options).train(resume_from_checkpoint=True)
    callback.close()
    points, expected = stored()[1], stored("whole")[1]
    for name in ("loss", "own loss", "eval_loss", "grad_norm"):
        assert points[name,] == expected[name,], name
    assert sum(points["outputs",].values()) == sum(expected["outputs",].values())


def test_a_checkpoint_elsewhere_is_found_if_it_is_named(config, stored, tmp_path, caplog):
    callback = TrackerCallback(config)
    trainer_of(callback, tmp_path / "out").train()
    callback.close()
    moved = tmp_path / "moved"
    (tmp_path / "out" / "checkpoint-4").rename(moved)
    callback = TrackerCallback(config, checkpoint=moved)
    trainer_of(callback, tmp_path / "new").train(resume_from_checkpoint=str(moved))
    callback.close()
    assert len(stored()[1]["loss",]) == 12
    callback = TrackerCallback(config.model_copy(update={"path": tmp_path / "another"}))
    trainer_of(callback, tmp_path / "newer").train(resume_from_checkpoint=str(moved))
    callback.close()
    assert "Pass TrackerCallback(..., checkpoint=FOLDER)" in caplog.text


def test_a_second_training_is_a_second_run(config, tmp_path):
    callback = TrackerCallback(config)
    trainer = trainer_of(callback, tmp_path / "out", max_steps=2)
    trainer.train()
    trainer.train()
    callback.close()
    assert len(list((tmp_path / "runs").glob("*.jsonl"))) == 2


def test_watched_gradients_and_a_nan_are_shown(config, stored, tmp_path):
    model = Line()
    model.breaks_at = 5
    callback = TrackerCallback(config, gradients=True)
    trainer_of(callback, tmp_path / "out", model=model, max_steps=5, logging_nan_inf_filter=False).train()
    tracker = callback.tracked.tracker
    callback.close()
    _, points = stored()
    assert sum(points["gradients/layer.weight",].values()) == 2 * 4  # elements that are finite
    assert math.isnan(points["loss",][5])
    assert {"loss", "gradients/layer.weight"} <= {one.name for one in tracker.report.nonfinite}


@dataclasses.dataclass
class Shape:
    width: int = 2


@pytest.mark.parametrize("own", [Shape(), None])
def test_what_a_model_calls_its_configuration_may_be_anything(config, stored, tmp_path, own):
    model = Line()
    model.config = own
    callback = TrackerCallback(config)
    trainer_of(callback, tmp_path / "out", model=model)
    callback.run.get_context()  # opened
    callback.close()
    assert stored()[0]["hparams"]["model"] == (own and {"width": 2})
