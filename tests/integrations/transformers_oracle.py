"""Trainings by the Trainer of transformers, whose ``log_history`` is a logger of its own."""

import json
import os
import signal

import torch
from forks import config_in
from transformers import Trainer, TrainerCallback, TrainingArguments

from d9d_tracker.integrations.transformers import TrackerCallback


class Net(torch.nn.Module):
    """Logs its loss by itself, in training."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 1)
        self.callback = []

    def forward(self, inputs, labels):
        outputs = self.layer(inputs)[..., 0]
        loss = (outputs - labels).square().mean()
        if self.training and self.callback:
            self.callback[0].run.scalar("own", loss)
            self.callback[0].run.bins("values", torch.full((3,), 1.0 + int(os.environ.get("RANK", "0"))))
        return {"loss": loss, "logits": outputs}


class Killing(TrainerCallback):
    """Ends a training after a step."""

    def __init__(self, step, error):
        self.step, self.error = step, error

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise self.error("as planned")


def data(rows=24):
    generator = torch.Generator().manual_seed(0)
    return [{"inputs": torch.randn(4, generator=generator), "labels": torch.tensor(1.0)} for _ in range(rows)]


def trainer_of(callback, folder, killing=None, trainer: type[Trainer] = Trainer, **options):
    defaults = {
        "num_train_epochs": 3, "logging_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 0.1,
        "optim": "sgd",
    }  # fmt: skip
    args = TrainingArguments(
        output_dir=str(folder), report_to=[], use_cpu=True, disable_tqdm=True, seed=0, **{**defaults, **options}
    )
    model = Net()
    model.callback += [callback] if callback else []
    callbacks = [*model.callback, *([killing] if killing else [])]
    return trainer(model=model, args=args, train_dataset=data(), eval_dataset=data(8), callbacks=callbacks)


def history(trainer):
    """The Trainer's history by name and step: the last value of each."""
    points = {}
    for entry in trainer.state.log_history:
        for name, value in entry.items():
            if name != "step":
                points.setdefault(name, {})[entry["step"]] = float(value)
    return points


def stored(run):
    """What a run has, by name and step, without what the model logs by itself."""
    scalars = [series for series in run.load() if series.name not in ("own", "values")]
    assert not any(series.context for series in scalars)
    return {one.name: dict(zip(one.steps.tolist(), one.values.tolist(), strict=True)) for one in scalars}


def be_killed(folder, options, at):
    """Train, and be killed after a step."""
    callback = TrackerCallback(config_in(folder))
    killing = Killing(at, lambda message: os.kill(os.getpid(), signal.SIGKILL))
    trainer_of(callback, folder / "out", killing=killing, **options).train()


def be_one_of_two(folder, steps, resume=False, distributed="auto"):
    """Train on two ranks."""
    callback = TrackerCallback(config_in(folder, distributed=distributed))
    options = {"save_strategy": "steps", "save_steps": 6, "eval_strategy": "steps", "eval_steps": 3}
    trainer = trainer_of(callback, folder / "out", max_steps=steps, **options)
    trainer.train(resume_from_checkpoint=resume)
    trainer.evaluate()
    callback.close()
    if os.environ["RANK"] == "0":
        (folder / "history.json").write_text(json.dumps(history(trainer)))
    torch.distributed.destroy_process_group()


def read_history(folder):
    """What ``be_one_of_two`` has left."""
    saved = json.loads((folder / "history.json").read_text())
    return {name: {int(step): value for step, value in points.items()} for name, points in saved.items()}
