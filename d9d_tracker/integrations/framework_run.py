"""A run whose lifetime, steps and hyperparameters a framework decides."""

import logging
from collections.abc import Mapping
from typing import Any

from d9d_tracker.accumulator.arguments import numbers_among
from d9d_tracker.backend import RecordRun
from d9d_tracker.base import BaseTracker, BaseTrackerRun, RunConfig
from d9d_tracker.config import TrackerConfig
from d9d_tracker.factory import tracker_from_config

logger = logging.getLogger("d9d_tracker")


class FrameworkRun:
    """Opens a run when it is first asked for, and puts what a framework logs at the step that the framework says.

    Hyperparameters that come before the run is opened open it; later ones are added. A run that is given open stays its
    owner's to step and to close.

    Args:
        tracker: A tracker, the configuration of one, or an open run.
        properties: Name, description and hyperparameters of the run.
        is_alone: Whether only one process of a job ever gets here, so that no other must be waited for: a configuration
            then has its ``accumulator.distributed`` set to ``"off"`` where it is ``"auto"``.

    Attributes:
        tracker: The tracker; None if the run was given open.
        error: What has ended the run, where the framework said so earlier than it closes it.
    """

    def __init__(
        self,
        tracker: BaseTracker[Any] | TrackerConfig | BaseTrackerRun,
        properties: RunConfig | None = None,
        is_alone: bool = False,
    ):
        if isinstance(tracker, TrackerConfig):
            accumulator = tracker.accumulator
            if is_alone and accumulator is not None and accumulator.distributed == "auto":
                alone = accumulator.model_copy(update={"distributed": "off"})
                tracker = tracker.model_copy(update={"accumulator": alone})
            tracker = tracker_from_config(tracker)
        self._is_given = isinstance(tracker, BaseTrackerRun)
        self.tracker: Any = None if isinstance(tracker, BaseTrackerRun) else tracker
        self._properties = properties or RunConfig(name="run")
        self._run = tracker if isinstance(tracker, BaseTrackerRun) else None
        self._step = 0
        self._has_ended = False
        self.error: BaseException | None = None

    @property
    def is_open(self) -> bool:
        """Whether the run is open."""
        return self._run is not None

    @property
    def run(self) -> Any:
        """The run, opened now if it is not; after it has ended, the same run again."""
        if self._run is None:
            if self._has_ended:
                self.tracker.load_state_dict(self.tracker.state_dict())
            self._run = self.tracker.start(self._properties)
            if self._has_ended and isinstance(self._run, RecordRun):
                self._run.resume(False)  # it is the same life: nothing that was logged is logged again
        return self._run

    def add_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Add hyperparameters.

        Args:
            hparams: Hyperparameters, nested as deep as you like.
        """
        if self._run is None:
            merged = {**self._properties.hparams, **hparams}
            self._properties = self._properties.model_copy(update={"hparams": merged})
            return
        try:
            self._run.add_hparams(hparams)
        except NotImplementedError as error:
            logger.warning("hyperparameters %s are not stored: %s", ", ".join(hparams), error)

    def set_step(self, step: int) -> None:
        """Set the step, unless the framework has gone back, which is left to ``log``.

        Args:
            step: Index of the step, as the framework counts.
        """
        if step >= self._step and not self._is_given:
            self.run.set_step(step)
            self._step = step

    def log(self, metrics: Mapping[str, Any], step: int | None, context: dict[str, str] | None = None) -> None:
        """Log what a framework has on the host, at the framework's step and without the persistent context.

        Args:
            metrics: Names and values; what is no number is left out.
            step: The step; None for the current one. An earlier one gets its points where it is. A run that was given
                open is logged to at its current step.
            context: Tags.
        """
        before = self.run.get_context()
        if before:
            self.run.set_context({})
        try:
            self._log(metrics, step, context)
        finally:
            if before:
                self.run.set_context(before)

    def _log(self, metrics: Mapping[str, Any], step: int | None, context: dict[str, str] | None) -> None:
        names, values = list(metrics), list(metrics.values())
        numbers = {names[index]: values[index] for index in numbers_among(names, values)}
        if self._is_given or step is None or step >= self._step:
            self.set_step(self._step if step is None else step)
            self.run.scalars(numbers, context)
            return
        try:
            self.run.log_at(step, numbers, context)
        except ValueError as error:
            logger.warning("%s of step %d, which is over, are not stored: %s", ", ".join(numbers), step, error)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the tracker; nothing for a run that was given open, whose owner has it."""
        return {} if self._is_given else self.tracker.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the run of a state.

        Args:
            state: State of the tracker.
        """
        if self._is_given:
            return
        if self._run is not None:
            self._run.finish()
            self._run = None
        self.tracker.load_state_dict(state)
        self._step, self._has_ended = 0, False

    def finish(self, error: BaseException | None = None) -> None:
        """Close the run, if it is open and was not given so. Asked for again, it is opened again.

        Args:
            error: What ended it, if it failed.
        """
        if self._run is not None and not self._is_given:
            self._run.finish(error)
            self._run, self._has_ended = None, True
