"""Lightning and transformers on two processes: every rank logs, one run holds their mean, and a checkpoint goes on."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LIGHTNING = """
import os, sys, warnings
from pathlib import Path
import torch
from {package} import LightningModule, Trainer
from {package}.callbacks import ModelCheckpoint
from d9d_tracker import AccumulatorConfig, JsonlTrackerConfig
from d9d_tracker.integrations.lightning import TrackerCallback, TrackerLogger

folder, steps, resume = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
rank = int(os.environ["RANK"])

class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
    def training_step(self, batch, index):
        self.trainer.logger.run.bins("values", torch.full((3,), float(rank)))
        self.log("rank", float(rank))
        return self.layer(torch.ones(1, 1)).sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.zeros(100, 1), batch_size=1)

accumulator = AccumulatorConfig(device="cpu", sync_every=4, backlog_dir=folder / "backlog", distributed_timeout=60)
logger = TrackerLogger(JsonlTrackerConfig(path=folder / "runs", accumulator=accumulator))
trainer = Trainer(
    logger=logger, accelerator="cpu", devices=2, strategy="ddp", max_steps=steps, log_every_n_steps=1,
    enable_progress_bar=False, enable_model_summary=False,
    callbacks=[TrackerCallback(logger), ModelCheckpoint(folder / "checkpoints", every_n_train_steps=6, save_top_k=-1)],
)
trainer.fit(Model(), ckpt_path=resume[0] if resume else None)
logger.close()
torch.distributed.destroy_process_group()
"""

TRANSFORMERS = """
import os, sys
from pathlib import Path
import torch
from transformers import Trainer, TrainingArguments
from d9d_tracker import AccumulatorConfig, JsonlTrackerConfig
from d9d_tracker.integrations.transformers import TrackerCallback

folder, steps, resume = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
rank = int(os.environ["RANK"])
accumulator = AccumulatorConfig(device="cpu", sync_every=4, backlog_dir=folder / "backlog", distributed_timeout=60)
callback = TrackerCallback(JsonlTrackerConfig(path=folder / "runs", accumulator=accumulator))

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
    def forward(self, inputs):
        callback.run.bins("values", torch.full((3,), float(rank)))
        callback.run.scalar("rank", float(rank))
        return {"loss": self.layer(inputs).sum()}

arguments = TrainingArguments(
    output_dir=str(folder / "out"), max_steps=steps, logging_steps=1, save_steps=6, report_to=[], use_cpu=True,
    per_device_train_batch_size=1, disable_tqdm=True,
)
trainer = Trainer(Model(), arguments, train_dataset=[{"inputs": torch.zeros(1)}] * 100, callbacks=[callback])
trainer.train(resume_from_checkpoint=bool(resume))
callback.close()
torch.distributed.destroy_process_group()
"""


def launch(program, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    command += map(str, arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("package", ["lightning.pytorch", pytest.param("pytorch_lightning", marks=pytest.mark.slow)])
def test_lightning(stored, tmp_path, package):
    program = tmp_path / "program.py"
    program.write_text(LIGHTNING.format(package=package))
    launch(program, tmp_path, 9)
    _, points = stored()
    assert points["rank",] == dict.fromkeys(range(9), 0.5)
    assert sum(points["values",].values()) == 9 * 2 * 3
    if package == "lightning.pytorch":
        (checkpoint,) = (tmp_path / "checkpoints").glob("*step=6*")
        launch(program, tmp_path, 11, checkpoint)
        _, points = stored()
        assert points["rank",] == dict.fromkeys(range(11), 0.5)
        assert sum(points["values",].values()) == 11 * 2 * 3


def test_transformers(stored, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(TRANSFORMERS)
    launch(program, tmp_path, 9)
    assert stored()[1]["rank",] == dict.fromkeys(range(1, 10), 0.5)
    launch(program, tmp_path, 11, "resume")
    _, points = stored()
    assert points["rank",] == dict.fromkeys(range(1, 12), 0.5)
    assert sum(points["values",].values()) == 11 * 2 * 3
    assert set(points["loss",]) == set(range(1, 12))
