"""Hugging Face's Trainer: a callback that logs what the Trainer logs, watches the model, and saves the tracker's state.

trainer = Trainer(..., callbacks=[TrackerCallback(JsonlTrackerConfig(path="runs"), gradients=True)])
"""

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from d9d_tracker.base import BaseTracker, RunConfig
from d9d_tracker.config import TrackerConfig

from .framework_run import FrameworkRun

logger = logging.getLogger("d9d_tracker")


class TrackerCallback(TrainerCallback):
    """Logs at the steps of the Trainer: the first optimizer step is step 1, and what comes before belongs to step 0.

    ``trainer.train()`` opens the run, or goes on with that of its checkpoint; ``trainer.evaluate()`` after it is part
    of it. The run is closed by ``close``, by the next ``trainer.train()``, or at exit, so also when training
    raises. Every rank logs; for rank 0 alone, set ``accumulator.distributed`` to ``"rank0"``.

    Args:
        tracker: A tracker, or the configuration of one.
        name: Name of the run; by default ``args.run_name``, or the name of the output folder.
        checkpoint: Folder of the checkpoint to go on from, where the callback cannot find it: the Trainer does not tell
            it, so that it looks in ``args.output_dir`` and at ``args.resume_from_checkpoint``.
        **watch: What ``run.watch`` is called with for the model in training; without any, it is not watched.
    """

    def __init__(
        self,
        tracker: BaseTracker[Any] | TrackerConfig,
        name: str | None = None,
        checkpoint: str | Path | None = None,
        **watch: Any,
    ):
        self.tracked = FrameworkRun(tracker)
        self._name = name
        self._checkpoint = checkpoint
        self._watch = watch
        self._watching: Any = None

    @property
    def run(self) -> Any:
        """The open run: for a model that logs by itself."""
        return self.tracked.run

    def close(self) -> None:
        """Close the run. Logged to again, it is opened again."""
        self.tracked.finish()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Open the run, or go on with that of the checkpoint."""
        hparams = {"args": args.to_sanitized_dict()}
        if hasattr(model, "config"):
            hparams["model"] = model.config.to_dict()
        self.close()
        self.tracked = FrameworkRun(self.tracked.tracker, RunConfig(name=self._name or _name(args), hparams=hparams))
        if state.global_step > 0:
            self._load(args, state.global_step)
        self.tracked.set_step(state.global_step)
        if self._watch:
            self._watching = self.run.watch(model, **self._watch)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the step at which the Trainer will log this one."""
        self.tracked.set_step(state.global_step + 1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log what the Trainer logs."""
        self.tracked.log(logs or {}, state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save the tracker's state into the checkpoint's folder, on every rank."""
        folder = Path(args.output_dir or ".", f"checkpoint-{state.global_step}")
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f"{_file(args)}.draft"
        torch.save(self.tracked.tracker.state_dict(), draft)
        draft.replace(folder / _file(args))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Watch the model no longer, and make everything durable."""
        if self._watching is not None:
            self._watching.remove()
            self._watching = None
        self.run.flush()

    def _load(self, args: TrainingArguments, step: int) -> None:
        given = [self._checkpoint, args.resume_from_checkpoint, Path(args.output_dir or ".", f"checkpoint-{step}")]
        files = [Path(folder, _file(args)) for folder in given if isinstance(folder, str | Path)]
        found = next((file for file in files if file.exists()), None)
        if found is None:
            logger.warning(
                "the Trainer goes on at step %d but %s is in none of %s: this is a new run. Pass TrackerCallback(..., "
                "checkpoint=FOLDER) to go on with the run of the checkpoint",
                step,
                _file(args),
                ", ".join(str(file.parent) for file in files),
            )
            return
        self.tracked.load_state_dict(torch.load(found, weights_only=True))


def _name(args: TrainingArguments) -> str:
    return args.run_name or Path(args.output_dir or "trainer").name


def _file(args: TrainingArguments) -> str:
    return f"d9d_tracker-{args.process_index}.pt"
