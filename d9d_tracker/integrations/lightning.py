"""Lightning: a logger, and a callback that sets the step, watches the model and saves the tracker's state.

    logger = TrackerLogger(JsonlTrackerConfig(path="runs"), name="first")
    trainer = Trainer(logger=logger, callbacks=[TrackerCallback(logger, gradients=True)])

Works with ``lightning`` and with ``pytorch_lightning``, whichever was imported first.
"""

import sys
from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from d9d_tracker.base import BaseTracker, RunConfig
from d9d_tracker.config import TrackerConfig

from .framework_run import FrameworkRun

if TYPE_CHECKING or "pytorch_lightning" not in sys.modules:
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import Logger
else:
    from pytorch_lightning.callbacks import Callback
    from pytorch_lightning.loggers import Logger


class TrackerLogger(Logger):
    """Logs what ``self.log`` collects at Lightning's own step, and is a run for everything else.

    Fit, validate and test are one run, opened when it is first needed and closed by ``close`` or at exit. Every rank
    logs, so that a value is the mean of the ranks' values.

    Args:
        tracker: A tracker, or the configuration of one.
        name: Name of the run.
        description: Free text, if any.
    """

    def __init__(
        self, tracker: BaseTracker[Any] | TrackerConfig, name: str = "lightning", description: str | None = None
    ):
        super().__init__()
        self.tracked = FrameworkRun(tracker, RunConfig(name=name, description=description))
        self._name = name

    @property
    def run(self) -> Any:
        """The open run: ``self.trainer.logger.run.bins(...)`` also in compiled code."""
        return self.tracked.run

    @property
    def experiment(self) -> Any:
        """The open run; None before it is needed, because Lightning asks for it before it has read the checkpoint."""
        return self.tracked.run if self.tracked.is_open else None

    @property
    def name(self) -> str:
        """Name of the run."""
        return self._name

    @property
    def version(self) -> str:
        """The backend's identity of the run, once it was open."""
        return self.tracked.tracker.run_id or "new"

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log what Lightning has collected.

        Args:
            metrics: Names and values.
            step: Lightning's step.
        """
        self.tracked.log(metrics, step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Log hyperparameters, before the run is opened or later.

        Args:
            params: Hyperparameters.
            *args: Not used.
            **kwargs: Not used.
        """
        self.tracked.add_hparams(vars(params) if isinstance(params, Namespace) else dict(params or {}))

    def finalize(self, status: str) -> None:
        """Make everything durable; close the run if it failed.

        Args:
            status: ``"success"`` or ``"failed"``.
        """
        if status == "failed":
            self.tracked.finish(self.tracked.error)
        elif self.tracked.is_open:
            self.run.flush()

    def close(self) -> None:
        """Close the run. Logged to again, it is opened again."""
        self.tracked.finish()


class TrackerCallback(Callback):
    """Sets the step, tags what is logged outside of training, and keeps the tracker's state in the checkpoint.

    Args:
        logger: The logger.
        **watch: What ``run.watch`` is called with for the module in training; without any, it is not watched.
    """

    def __init__(self, logger: TrackerLogger, **watch: Any):
        self._tracked = logger.tracked
        self._watch = watch
        self._watching: Any = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Watch the module."""
        if self._watch:
            self._watching = self._tracked.run.watch(pl_module, **self._watch)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Set the step that Lightning logs this batch at: it counts batches after which an optimizer stepped."""
        self._tracked.set_step(trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Tag what the module logs by itself."""
        self._tracked.run.set_context({"stage": trainer.state.stage.value})

    on_test_start = on_predict_start = on_validation_start

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Tag it no more."""
        self._tracked.run.set_context({})

    on_test_end = on_predict_end = on_validation_end

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Watch the module no longer."""
        if self._watching is not None:
            self._watching.remove()
            self._watching = None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Remember what ended the run."""
        self._tracked.error = exception

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Save the tracker's state, with what Lightning will log for this step only after the checkpoint."""
        connector, loop = trainer._logger_connector, trainer.fit_loop
        if trainer.training and (
            connector._first_loop_iter is None or (connector.should_update_logs and not loop._should_accumulate())
        ):
            # Logged again in a moment, with the same values, so that their mean is the same.
            metrics = {name: float(value) for name, value in connector.metrics["log"].items()}
            self._tracked.log({**metrics, "epoch": trainer.current_epoch}, loop.epoch_loop._batches_that_stepped)
        checkpoint["callbacks"][self.state_key] = self.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """Return the tracker's state. Lightning saves that of rank 0, so the other ranks' part is merged first."""
        tracker = self._tracked.tracker
        if self._tracked.is_open and getattr(tracker, "world_size", 1) > 1:
            self._tracked.run.flush()
        return tracker.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the run of the checkpoint."""
        self._tracked.load_state_dict(state_dict)
