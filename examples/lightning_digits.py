"""Lightning: what `self.log` collects, and histograms from inside the module. Needs lightning and scikit-learn."""

import sys

import torch
from demo import Digits
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from d9d_tracker import JsonlTrackerConfig
from d9d_tracker.integrations.lightning import TrackerCallback, TrackerLogger


class Classifier(LightningModule):
    def __init__(self, rate: float = 3e-3):
        super().__init__()
        self.save_hyperparameters()
        self.rate = rate
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 10))

    def training_step(self, batch, index):
        logits = self.layers(batch[0])
        self.logger.experiment.bins("logits", logits)  # from the device, at every step
        loss = functional.cross_entropy(logits, batch[1])
        self.log("loss", loss)  # as ever
        return loss

    def validation_step(self, batch, index):
        self.log("accuracy", (self.layers(batch[0]).argmax(-1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.rate)


def main(out: str = "runs", epochs: int = 5) -> None:
    train, held_out = Digits.load(torch.device("cpu"))
    logger = TrackerLogger(JsonlTrackerConfig(path=out), name="digits with Lightning")
    trainer = Trainer(
        logger=logger,
        callbacks=[TrackerCallback(logger, gradients=True)],  # and its state is in every checkpoint
        max_epochs=epochs,
        accelerator="cpu",
        log_every_n_steps=1,
    )
    loaders = [DataLoader(TensorDataset(part.images, part.labels), batch_size=128) for part in (train, held_out)]
    trainer.fit(Classifier(), *loaders)
    logger.close()


if __name__ == "__main__":
    main(*sys.argv[1:2])
