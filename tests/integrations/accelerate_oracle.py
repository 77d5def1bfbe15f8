"""Trainings by Accelerate, beside a tracker of its own kind that keeps a list."""

import os
import signal

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from forks import config_in

from d9d_tracker import RunConfig, tracker_from_config
from d9d_tracker.integrations.accelerate import AccelerateTracker


class Witness(GeneralTracker):
    """Keeps a list of what is logged; without a step, W&B's way: one more at every call."""

    name = "witness"
    requires_logging_directory = False

    def __init__(self):
        super().__init__(_blank=True)
        self.points, self.next_step = {}, 0

    @property
    def tracker(self):
        return self

    def log(self, values, step=None, **kwargs):
        step = self.next_step if step is None else step
        self.next_step = max(self.next_step, step + 1)
        for name, value in values.items():
            self.points.setdefault(name, {})[step] = float(value.item() if hasattr(value, "item") else value)


def train(folder, steps, at=None, resume=False, is_killed=False):
    """Log a loss, saving every fourth step; the end comes before a step."""
    tracked, witness = AccelerateTracker(config_in(folder)), Witness()
    accelerator = Accelerator(log_with=[tracked, witness], cpu=True)
    accelerator.init_trackers("project")
    accelerator.register_for_checkpointing(tracked)
    if resume:
        accelerator.load_state(str(folder / "checkpoint"))
    for step in range(8 if resume else 0, steps):
        if step == at and is_killed:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == at:
            raise RuntimeError("as planned")
        accelerator.log({"loss": step / 3 + resume}, step=step)
        if step % 4 == 3:
            accelerator.log({"eval": step / 7}, step=step)
            accelerator.save_state(str(folder / "checkpoint"))
    accelerator.end_training()
    return witness.points


def be_one_of_two(folder, how):
    """Log on two processes: to a run of the main one, or to one that both have opened."""
    if how == "config":
        accelerator = Accelerator(log_with=AccelerateTracker(config_in(folder)), cpu=True)
        accelerator.init_trackers("project")
        for step in range(6):
            accelerator.log({"loss": float(accelerator.process_index + step)}, step=step)
    else:
        accelerator = Accelerator(cpu=True)
        with tracker_from_config(config_in(folder)).open(RunConfig(name="all")) as run:
            accelerator.log_with = [AccelerateTracker(run)]
            accelerator.init_trackers("project")
            for step in range(6):
                run.set_step(step)
                run.scalar("rank", float(accelerator.process_index))
                accelerator.log({"loss": float(step)}, step=step)
    accelerator.end_training()
