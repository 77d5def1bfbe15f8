"""Hugging Face's Trainer: a callback that logs what the Trainer logs, watches the model, and saves the tracker's state.

trainer = Trainer(..., callbacks=[TrackerCallback(JsonlTrackerConfig(path="runs"), gradients=True)])
"""

from pathlib import Path
from typing import Any, cast

from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from d9d_tracker.base import RunConfig
from d9d_tracker.ranks.job import is_silenced

from .framework_run import AnyRun, AnyTracker, FrameworkRun
from .transformers_checkpoint import load, save

_AS_IT_WAS = "as it was"


class _StandIn(TrainerCallback):
    """What ``restore_callback_states_from_checkpoint`` gets, which would put another callback in place of ours."""


class TrackerCallback(TrainerCallback, ExportableState):
    """Logs at the steps of the Trainer: the first optimizer step is step 1, and what comes before belongs to step 0.

    ``trainer.train()`` opens the run, or goes on with that of its checkpoint, which the Trainer's own state names;
    ``trainer.evaluate()`` before or after it is part of it. The run is closed by ``close``, by the next
    ``trainer.train()``, or at exit, so also when training raises. Every rank logs; for rank 0 alone, set
    ``accumulator.distributed`` to ``"rank0"``.

    Args:
        tracker: A tracker, or the configuration of one.
        name: Name of the run; by default ``args.run_name``, or the name of the output folder.
        checkpoint: Where the folder of the checkpoint to go on from is now, if it was moved.
        monitor: Whether to call ``run.monitor()``.
        **watch: What ``run.watch`` is called with for the model in training; without any, it is not watched.
    """

    def __new__(cls, tracker: Any, *args: Any, **kwargs: Any) -> Any:
        """Make the callback, unless it is there already and only its state is restored."""
        return _StandIn() if tracker == _AS_IT_WAS else super().__new__(cls)

    def __init__(
        self,
        tracker: AnyTracker,
        name: str | None = None,
        checkpoint: str | Path | None = None,
        *,
        monitor: bool = False,
        **watch: Any,
    ):
        self.tracked = FrameworkRun(tracker, monitor=monitor)
        self._name = name
        self._checkpoint = checkpoint
        self._watch = watch
        self._has_trained = False
        self._output = "."

    @property
    def run(self) -> AnyRun:
        """The run, which is opened now if it is not open: for a model that logs by itself."""
        return self.tracked.run

    def close(self) -> None:
        """Close the run. Logged to again, it is opened again."""
        self.tracked.finish()

    def state(self) -> dict[str, Any]:
        """Return what the Trainer writes into ``trainer_state.json``: whose run a checkpoint is part of."""
        run_id, name = self.tracked.tracker.run_id, self.tracked.properties.name
        attributes = {"run_id": run_id, "name": name, "output_dir": str(Path(self._output).absolute())}
        return {"args": {"tracker": _AS_IT_WAS}, "attributes": attributes}

    def on_init_end(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Give the run its name and hyperparameters."""
        self._prepare(args, state, kwargs.get("model"))

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Begin a run, or go on with that of the checkpoint."""
        if self._has_trained:
            self.tracked = self.tracked.anew()
        self._prepare(args, state, kwargs.get("model"))
        saved, step = cast(dict[str, Any], state.stateful_callbacks), state.global_step
        kind, name = type(self).__name__, self.tracked.properties.name
        accumulator = getattr(self.tracked.tracker.config, "accumulator", None)
        if step > 0 and not (accumulator and is_silenced(accumulator)):  # who has logged nothing goes on with nothing
            told = (self._checkpoint, args.resume_from_checkpoint if kind in saved else None)
            loaded = load(saved.get(kind, []), name, told, args.output_dir, step, args.process_index)
            if loaded is not None:
                self.tracked.load_state_dict(loaded)
        saved.setdefault(kind, self.state())  # the checkpoint may know of none
        self.tracked.set_step(step)
        self.tracked.start_watching(kwargs.get("model"), self._watch)
        self._has_trained = True

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Set the step at which the Trainer will log this one."""
        self.tracked.set_step(state.global_step + 1)

    def on_log(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Log what the Trainer logs."""
        self._prepare(args, state, kwargs.get("model"))
        self.tracked.log(kwargs.get("logs") or {}, state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Save the tracker's state into the checkpoint's folder, on every rank."""
        tracked = self.tracked
        save(tracked.state_dict(), tracked.tracker.run_id, args.output_dir, state.global_step, args.process_index)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Watch the model no longer, and make everything durable."""
        self.tracked.stop_watching()
        self.run.flush()

    def _prepare(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        self._output = args.output_dir or "."
        if self.tracked.is_open or (self._has_trained and self.tracked.step > 0):
            return
        hparams: dict[str, Any] = {"args": args.to_sanitized_dict()}
        if hasattr(model, "config"):
            hparams["model"] = model.config.to_dict() if hasattr(model.config, "to_dict") else model.config
        if state.trial_params:
            hparams["trial"] = dict(state.trial_params)
        name = self._name or args.run_name or Path(self._output).name or "trainer"
        self.tracked.properties = RunConfig(name=name, hparams=hparams)
