"""Where the time of a step goes: a loader that is too slow at first, and is helped in the middle of the run."""

import sys
import time
from collections.abc import Iterator

import torch
from torch import nn

from d9d_tracker import JsonlTrackerConfig, RunConfig, tracker_from_config


def loader(steps: int) -> Iterator[torch.Tensor]:
    for step in range(steps):
        time.sleep(0.1 if step < steps // 2 else 0.01)  # as if it had been given more workers
        yield torch.randn(256, 64)


def main(out: str = "runs", steps: int = 200) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
    optimizer = torch.optim.AdamW(model.parameters())
    with tracker_from_config(JsonlTrackerConfig(path=out)).open(RunConfig(name="slow at first")) as run:
        run.monitor()
        for step, batch in enumerate(run.timed(loader(steps))):
            run.set_step(step)
            with run.time("forward"):
                loss = (model(batch) - batch.flip(1)).square().mean()
            with run.time("backward"):
                loss.backward()
            with run.time("optimizer"):
                optimizer.step()
                optimizer.zero_grad()
            run.scalar("loss", loss)
            run.rate("samples", len(batch))


if __name__ == "__main__":
    main(*sys.argv[1:2])
