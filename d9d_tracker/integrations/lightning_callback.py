"""What ``TrackerCallback`` does in either of Lightning's packages."""

import itertools
from typing import Any

from d9d_tracker.log import logger

from .lightning_logger import LoggerPart


class CallbackPart:
    """See ``d9d_tracker.integrations.lightning.TrackerCallback``."""

    def __init__(self, logger: LoggerPart | None = None, **watch: Any):
        self._given = logger
        self._logger: LoggerPart | None = None  # the trainer's
        self._stage = ""
        self._watch = watch
        self._stage_before: dict[str, str] = {}
        self._is_logged_next = False  # whether Lightning will log for this step what its metrics are now
        self._number = ""  # among several in a trainer

    @property
    def state_key(self) -> str:
        """Where a checkpoint keeps the state: for each of several loggers, each with a callback, elsewhere."""
        return type(self).__qualname__ + self._number

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Look for the logger, and remember what for the callback's state is read."""
        before = itertools.takewhile(lambda one: one is not self, trainer.callbacks)
        number = sum(isinstance(one, CallbackPart) for one in before)
        self._number = f"-{number}" if number else ""
        mine = [one for one in trainer.loggers if isinstance(one, LoggerPart) and self._given in (None, one)]
        self._logger, self._stage = mine[0] if mine else None, stage
        if self._logger is not None:
            self._logger.settle_in(trainer.default_root_dir)
        elif not trainer.fast_dev_run:
            logger.warning("TrackerCallback does nothing: its logger is not one of Trainer(logger=...)")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Open the run, and watch the module."""
        if self._logger is None:
            return
        if _step(trainer) < self._logger.tracked.step:
            self._logger.begin_again()
        self._logger.run.get_context()  # opened on every rank
        self._logger.tracked.start_watching(pl_module, self._watch)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Set the step that Lightning logs this batch at: it counts batches after which an optimizer stepped."""
        self._is_logged_next = False
        if self._logger is not None:
            self._logger.tracked.set_step(_step(trainer))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Find out whether Lightning will log this step, which it does after it has saved checkpoints."""
        is_last = trainer.is_last_batch and not trainer.strategy.handles_gradient_accumulation
        steps = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or is_last
        every = trainer.log_every_n_steps
        is_due = every > 0 and ((_step(trainer) + 1) % every == 0 or trainer.should_stop)
        self._is_logged_next = is_due and (steps or not pl_module.automatic_optimization)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Expect Lightning to log the epoch, which it does after it has saved checkpoints."""
        self._is_logged_next = True

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Expect nothing more of the last epoch."""
        self._is_logged_next = False

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Tag what the module logs by itself, which is a run of its own only if nothing was trained before."""
        self._is_logged_next = False
        if self._logger is None:
            return
        tracked = self._logger.tracked
        if self._stage != "fit":
            tracked.set_step(_step(trainer))
        before = tracked.get_context()
        self._stage_before = {"stage": before["stage"]} if "stage" in before else {}
        tracked.set_context({**before, "stage": trainer.state.stage.value})
        if self._stage != "predict":  # of which Lightning logs nothing
            self._logger.run.get_context()  # opened on every rank

    on_test_start = on_predict_start = on_validation_start

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Tag it no more."""
        if self._logger is not None:
            tracked = self._logger.tracked
            context = {name: tag for name, tag in tracked.get_context().items() if name != "stage"}
            tracked.set_context({**context, **self._stage_before})

    on_test_end = on_predict_end = on_validation_end

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Watch the module no longer."""
        self._is_logged_next = False
        if self._logger is not None:
            self._logger.tracked.stop_watching()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Remember what ended the run."""
        self.on_train_end(trainer, pl_module)
        if self._logger is not None:
            self._logger.tracked.error = exception

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Save the tracker's state, with what Lightning will log for this step only after the checkpoint."""
        if self._logger is None:
            return
        if self._is_logged_next:
            # What is current is made anew at each reading; the rest is of earlier steps.
            before = dict(trainer.logged_metrics)
            now = trainer.logged_metrics
            metrics = {name: value.item() for name, value in now.items() if value is not before.get(name)}
            step = metrics.pop("step", None)
            epoch = {"epoch": trainer.current_epoch} if step is None and metrics else {}
            self._logger.log_metrics({**metrics, **epoch}, None if step is None else int(step))
        checkpoint["callbacks"][self.state_key] = self._logger.tracked.state_of_all()  # Lightning saves that of rank 0

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the run of the checkpoint, if it is trained on."""
        if self._stage == "fit" and self._logger is not None:
            self._logger.tracked.load_state_dict(state_dict)


def _step(trainer: Any) -> int:
    """What loggers are told, which only checkpoints have: ``global_step`` counts each of several optimizers."""
    return trainer.fit_loop.epoch_loop.on_save_checkpoint().get("_batches_that_stepped", trainer.global_step)
