"""A loop to copy from: compiled, gradient accumulation, AMP, an average of the weights, evaluation, checkpoints.

Interrupt it and start it again: it goes on in the middle of its window, and every point is there once.
Needs scikit-learn and a C++ compiler. Runs on any device of torch: ``python plain_loop.py --device mps``.
"""

import argparse
import os
from pathlib import Path

import torch
from demo import Digits
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from d9d_tracker import AccumulatorConfig, JsonlTrackerConfig, RunConfig, tracker_from_config

MICRO_BATCHES, BATCH, EVALUATE_EVERY, SAVE_EVERY = 2, 64, 50, 100
HPARAMS = {"lr": 3e-3, "batch": BATCH * MICRO_BATCHES, "ema": 0.99}


def main(out: str = "runs", steps: int = 400, device_name: str | None = None) -> None:
    device = torch.device(device_name or torch.accelerator.current_accelerator(check_available=True) or "cpu")
    train, held_out = Digits.load(device)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 10)).to(device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(HPARAMS["ema"]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=HPARAMS["lr"])
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    accumulator = AccumulatorConfig(device=str(device))
    tracker = tracker_from_config(JsonlTrackerConfig(path=Path(out), accumulator=accumulator))
    stateful = {"model": model, "average": average, "optimizer": optimizer, "scaler": scaler, "tracker": tracker}

    checkpoint, first = Path(out, "plain_loop.pt"), 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        first = state.pop("step")
        for name, part in state.items():
            stateful[name].load_state_dict(part)  # the tracker's before `open`

    def save(step: int) -> None:
        draft = checkpoint.with_suffix(".new")
        torch.save({"step": step, **{name: part.state_dict() for name, part in stateful.items()}}, draft)
        os.replace(draft, checkpoint)  # whole, or not at all

    with tracker.open(RunConfig(name="plain loop", hparams=HPARAMS)) as run:

        @torch.compile
        def loss_of(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            with torch.autocast(device.type, dtype=torch.bfloat16):
                logits = network(images)
            loss = functional.cross_entropy(logits.float(), labels)
            run.scalars({"loss": loss, "accuracy": (logits.argmax(-1) == labels).float().mean()})
            run.bins("logits", logits)
            return loss

        run.watch(model, gradients=True, parameters=True, every=10)
        if not checkpoint.exists():
            save(0)  # a job that is killed before its first checkpoint would start another run
        for step in range(first, steps):
            run.set_step(step)
            generator = torch.Generator().manual_seed(step)
            with run.context(stage="train"):
                for _ in range(MICRO_BATCHES):  # both go into one point of the step
                    batch = torch.randint(0, len(train.images), (BATCH,), generator=generator).to(device)
                    scaler.scale(loss_of(model, train.images[batch], train.labels[batch]) / MICRO_BATCHES).backward()
                run.scalar("lr", optimizer.param_groups[0]["lr"])
                scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            average.update_parameters(model)
            if (step + 1) % EVALUATE_EVERY == 0:
                with torch.no_grad(), run.context(stage="eval"):
                    loss_of(average, held_out.images, held_out.labels)
            if (step + 1) % SAVE_EVERY == 0:
                save(step + 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", nargs="?", default="runs")
    parser.add_argument("--device")
    main(parser.parse_args().out, device_name=parser.parse_args().device)
