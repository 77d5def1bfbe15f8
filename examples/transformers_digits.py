"""Hugging Face's Trainer: what it logs, and histograms from inside the model.

Needs transformers, accelerate and scikit-learn.
"""

import sys

import torch
from demo import Digits
from torch import nn
from torch.nn import functional
from transformers import Trainer, TrainingArguments

from d9d_tracker import JsonlTrackerConfig
from d9d_tracker.integrations.transformers import TrackerCallback


class Classifier(nn.Module):
    def __init__(self, callback: TrackerCallback):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 10))
        self.callback = [callback]  # in a list, so that it is no part of the module

    def forward(self, images, labels):
        logits = self.layers(images)
        loss = functional.cross_entropy(logits, labels)
        if self.training:
            self.callback[0].run.bins("logits", logits)
            self.callback[0].run.scalar("own loss", loss)  # a NaN is a NaN here, whatever logging_nan_inf_filter says
        return {"loss": loss, "logits": logits}


def main(out: str = "runs", epochs: int = 5) -> None:
    train, held_out = (
        [{"images": image, "labels": label} for image, label in zip(part.images, part.labels, strict=True)]
        for part in Digits.load(torch.device("cpu"))
    )
    callback = TrackerCallback(JsonlTrackerConfig(path=out), name="digits with transformers", gradients=True)
    arguments = TrainingArguments(
        output_dir=f"{out}/checkpoints",
        num_train_epochs=epochs,
        per_device_train_batch_size=128,
        learning_rate=3e-3,
        logging_steps=5,
        eval_strategy="epoch",
        save_strategy="epoch",
        report_to=[],
        use_cpu=True,
    )
    Trainer(Classifier(callback), arguments, train_dataset=train, eval_dataset=held_out, callbacks=[callback]).train()
    callback.close()


if __name__ == "__main__":
    main(*sys.argv[1:2])
