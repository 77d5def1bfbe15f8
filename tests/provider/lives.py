"""Trainings that are killed, each forked from a process that has paid for the imports.

Reads a line, the arguments of `train` as a JSON object, and answers with the process id; reads another, and answers
with the exit status when the process has ended.
"""

import gc
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow  # noqa: F401 - so that no life waits for it
import torch
import trackio  # noqa: F401 - likewise
import wandb  # noqa: F401 - likewise
from pydantic import TypeAdapter

from d9d_tracker import AnyTrackerConfig, RunConfig, tracker_from_config
from d9d_tracker.accumulator import AccumulatingTracker

STEPS = 60
CHECKPOINT_EVERY = 7


def train(folder: Path, config: dict[str, Any]) -> None:
    """Log for 60 steps, the same values in every life, from the last checkpoint if there is one."""
    tracker = tracker_from_config(TypeAdapter(AnyTrackerConfig).validate_python(config))
    assert isinstance(tracker, AccumulatingTracker)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    checkpoint, first = folder / "checkpoint.pt", 0
    if checkpoint.exists():
        loaded = torch.load(checkpoint, weights_only=True)
        tracker.load_state_dict(loaded["tracker"])
        first = loaded["step"]
    with tracker.open(RunConfig(name="killed", hparams={"steps": STEPS})) as run:

        def save(step: int) -> None:
            torch.save({"step": step, "tracker": tracker.state_dict()}, folder / "checkpoint.new")
            (folder / "run_id").write_text(json.dumps(json.loads(tracker.state_dict()["backend"])["state"]))
            (folder / "checkpoint.new").replace(checkpoint)

        save(first)
        for step in range(first, STEPS):
            run.set_step(step)
            values = torch.randn(64, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            run.scalar("loss", values[0])
            run.scalar("loss", values[1], {"stage": "eval"})
            run.bins("grad", values)
            if step % 10 == 0:
                run.scalar("rare", values[2])
            (folder / "progress").write_text(str(step))
            if (step + 1) % CHECKPOINT_EVERY == 0:
                save(step + 1)


def train_by_halves(folder: Path, config: dict[str, Any]) -> None:
    """Log two values a step, with a flush between them. The first life saves its state there and dies in step 3."""
    tracker = tracker_from_config(TypeAdapter(AnyTrackerConfig).validate_python(config))
    checkpoint, first = folder / "checkpoint.pt", (0, 0)
    is_first_life = not checkpoint.exists()
    if not is_first_life:
        loaded = torch.load(checkpoint, weights_only=True)
        tracker.load_state_dict(loaded["tracker"])
        first = loaded["next"]
    with tracker.open(RunConfig(name="halves")) as run:
        for step in range(first[0], 6):
            run.set_step(step)
            if (step, 0) >= first:
                run.scalar("loss", 10.0 * step)
                run.flush()
                if step == 3 and is_first_life:
                    state = tracker.state_dict()
                    torch.save({"next": (step, 1), "tracker": state}, checkpoint)
                    (folder / "run_id").write_text(json.dumps(json.loads(state["backend"])["state"]))
                    os._exit(9)
            run.scalar("loss", 10.0 * step + 4)
            run.scalar("val/acc", step / 8)


def main() -> None:
    gc.freeze()  # lives do not look through what they were forked with
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _live(train_by_halves if order["by_halves"] else train, Path(order["folder"]), order["config"])
        print(pid, flush=True)
        sys.stdin.readline()  # until then the id is taken, dead or alive, and safe to kill
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _live(training: Callable[[Path, dict[str, Any]], None], folder: Path, config: dict[str, Any]) -> None:
    log = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 1
    try:
        training(folder, config)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
