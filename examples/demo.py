"""The demo: a small network learns to read digits, tracked from inside its compiled training step.

Under ``torchrun`` every rank trains on its share of the data, and all of them share one run. Needs scikit-learn; it is
also the command ``python -m d9d_tracker demo``, which has choices.
"""

import importlib.util
import logging
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import Progress
from torch import nn
from torch.nn import functional

from d9d_tracker.accumulator import AccumulatingRun, AccumulatingTracker
from d9d_tracker.base import RunConfig
from d9d_tracker.config import AccumulatorConfig, TrackerConfig
from d9d_tracker.factory import tracker_from_config
from d9d_tracker.provider.aim import AimConfig
from d9d_tracker.provider.console import ConsoleTrackerConfig
from d9d_tracker.provider.jsonl import JsonlTrackerConfig
from d9d_tracker.provider.mlflow import MLflowConfig
from d9d_tracker.provider.tensorboard import TensorBoardConfig
from d9d_tracker.provider.trackio import TrackioConfig
from d9d_tracker.provider.wandb import WandbConfig

_BATCH = 128
_EVAL_EVERY = 50
_PEAK_LEARNING_RATE = 3e-3


@dataclass
class Digits:
    """Images of handwritten digits, 8 by 8 pixels between 0 and 1, and what they show."""

    images: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def load(cls, device: torch.device) -> tuple["Digits", "Digits"]:
        """Return the training and the held-out part of scikit-learn's bundled data set, on a device."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError("the demo trains on scikit-learn's digits: pip install 'd9d_tracker[demo]'") from error
        data = load_digits()
        images = torch.as_tensor(data.data, dtype=torch.float32, device=device) / 16
        labels = torch.as_tensor(data.target, dtype=torch.int64, device=device)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).to(device)
        train, held_out = order[: -len(order) // 5], order[-len(order) // 5 :]
        return cls(images[train], labels[train]), cls(images[held_out], labels[held_out])

    def share(self, rank: int, size: int) -> "Digits":
        """Return the part of the data that belongs to one of several ranks."""
        return Digits(self.images[rank::size], self.labels[rank::size])


class Network(nn.Module):
    """Three layers that log their activations from inside the compiled forward."""

    def __init__(self, run: AccumulatingRun):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 128), nn.Linear(128, 128)])
        self.head = nn.Linear(128, 10)
        self.run = run

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of the ten digits, of shape ``[batch, 10]``."""
        hidden = images
        for index, layer in enumerate(self.layers):
            hidden = functional.gelu(layer(hidden))
            self.run.bins(f"activations/{index}", hidden)
        return self.head(hidden)


def main(provider: str = "jsonl", steps: int = 600, out: Path = Path("runs")) -> int:
    """Train, track, and say where the run is."""
    if provider == "aim" and importlib.util.find_spec("aim") is None:
        Console().print("Aim is not installed (Python 3.13 has no wheel of it): the run goes to a JSON file.")
        provider = "jsonl"
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    console = Console(quiet=rank > 0)
    if provider == "console" and not console.is_terminal:  # then the values are log lines
        logging.basicConfig(format="%(message)s", stream=sys.stdout)
        logging.getLogger("d9d_tracker").setLevel(logging.INFO)
    torch.manual_seed(0)
    device = _device()
    if size > 1:
        dist.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl")
    train, held_out = (part.share(rank, size) for part in Digits.load(device))
    config = _config(provider, out)
    config.accumulator = AccumulatorConfig(summary=False)  # it is printed below, also where there is no terminal
    tracker = tracker_from_config(config)
    assert isinstance(tracker, AccumulatingTracker)
    properties = RunConfig(
        name="digits",
        description="A three-layer network learns to read digits; the demo of d9d_tracker.",
        hparams={
            "steps": steps,
            "batch": _BATCH,
            "learning_rate": {"peak": _PEAK_LEARNING_RATE},
            "device": str(device),
            "ranks": size,
        },
    )
    compiles = device.type == "cuda" or any(map(shutil.which, ("c++", "g++", "clang++")))
    if not compiles:
        console.print("No C++ compiler found: the step runs eagerly. Tracking is the same.")
    with tracker.open(properties) as run:
        model = Network(run).to(device)
        run.watch(model, gradients=False, norms=True, updates=True)
        torch.manual_seed(rank)  # the network is the same everywhere, the batches are not
        shows_progress = provider != "console" and rank == 0
        _train(model, run, train, held_out, steps, compiles, console if shows_progress else None)
    if rank == 0:
        tracker.print_summary(console)
    if size > 1:
        dist.destroy_process_group()
    return 0


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cuda", torch.cuda.current_device())


def _config(provider: str, out: Path) -> TrackerConfig:
    configs: dict[str, Callable[[], TrackerConfig]] = {
        "aim": lambda: AimConfig(repo=str(out), capture_terminal_logs=False),
        "console": ConsoleTrackerConfig,
        "jsonl": lambda: JsonlTrackerConfig(path=out),
        "mlflow": lambda: MLflowConfig(experiment="d9d_tracker demo", tracking_uri=_mlflow_store(out)),
        "tensorboard": lambda: TensorBoardConfig(log_dir=out),
        "trackio": lambda: TrackioConfig(project="d9d_tracker-demo", dir=out),
        "wandb": lambda: WandbConfig(project="d9d_tracker-demo", mode="offline", dir=out),
    }
    if provider == "mlflow":
        out.mkdir(parents=True, exist_ok=True)  # sqlite makes none
    return configs[provider]()


def _mlflow_store(out: Path) -> str:
    return f"sqlite:///{out.resolve() / 'mlflow.db'}"


def _train(
    model: Network,
    run: AccumulatingRun,
    train: Digits,
    held_out: Digits,
    steps: int,
    compiles: bool,
    console: Console | None,
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=_PEAK_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK_LEARNING_RATE, total_steps=steps + 1)
    parameters = dict(model.named_parameters())

    def measure(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = model(images)
        loss = functional.cross_entropy(logits, labels)
        accuracy = (logits.argmax(-1) == labels).float().mean()
        run.scalars({"loss": loss, "accuracy": accuracy})
        return loss

    def log_gradients() -> None:
        gradients = [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
        run.scalar("gradient norm", torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients])))
        run.bins_many({f"gradients/{name}": g for name, g in zip(parameters, gradients, strict=True)})

    if compiles:
        measure = torch.compile(measure, fullgraph=True)
        log_gradients = torch.compile(log_gradients, fullgraph=True)

    def average_gradients() -> None:
        for gradient in (parameter.grad for parameter in parameters.values() if parameter.grad is not None):
            dist.all_reduce(gradient)
            gradient.div_(dist.get_world_size())

    with Progress(console=console, disable=console is None) as progress:
        bar = progress.add_task("training", total=steps)
        for step in range(steps):
            run.set_step(step)
            run.set_context({"stage": "train"})
            batch = torch.randint(0, len(train.images), (_BATCH,), device=train.images.device)
            loss = measure(train.images[batch], train.labels[batch])
            loss.backward()
            if dist.is_initialized():
                average_gradients()
            if not dist.is_initialized() or dist.get_rank() == 0:  # they are the same on every rank: count them once
                log_gradients()
            run.scalar("learning rate", optimizer.param_groups[0]["lr"])
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            schedule.step()
            if (step + 1) % _EVAL_EVERY == 0 or step == steps - 1:
                run.set_context({"stage": "eval"})
                with torch.no_grad():
                    measure(held_out.images, held_out.labels)
            progress.advance(bar)


if __name__ == "__main__":
    sys.exit(main())
