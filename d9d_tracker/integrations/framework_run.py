"""A run whose lifetime, steps and hyperparameters a framework decides."""

import json
import logging
import weakref
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from d9d_tracker.bare_run import BareRun
from d9d_tracker.base import BaseTracker, BaseTrackerRun, RunConfig
from d9d_tracker.config import TrackerConfig
from d9d_tracker.factory import tracker_from_config

from .framework_values import numbers_of, same

logger = logging.getLogger("d9d_tracker")


class FrameworkRun:
    """Opens a run when it is first asked for, and puts what a framework logs at the step that the framework says.

    What a framework logs is finished: at one step the last value stands. A first value is the mean of the ranks'
    values; one that replaces it, or comes for another step than the current one, is rank 0's.

    What it does not have itself, it has from the run: ``scalar``, ``bins`` and the others open it. Hyperparameters that
    come before the run is opened open it; later ones are added. A run that is given open stays its owner's to step and
    to close.

    Args:
        tracker: A tracker, the configuration of one, or an open run.
        properties: Name, description and hyperparameters of the run.
        is_alone: Whether only one process of a job ever gets here, so that no other must be waited for: a configuration
            then has its ``accumulator.distributed`` set to ``"off"`` where it is ``"auto"``.

    Attributes:
        tracker: The tracker; None if the run was given open.
        step: The step that was set last.
        error: What has ended the run, where the framework said so earlier than it closes it.
    """

    _all: ClassVar["weakref.WeakSet[FrameworkRun]"] = weakref.WeakSet()

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
        self.properties = properties or RunConfig(name="run")
        self.step = 0
        self.error: BaseException | None = None
        self._run = tracker if isinstance(tracker, BaseTrackerRun) else None
        self._context: dict[str, str] = {}  # of a run that is not open
        self._is_step_due = True
        self._has_ended = False
        self._logged: dict[str, dict[str, Any]] = {}  # at this step, by context and name
        self._said: set[str] = set()
        self._all.add(self)

    def __getattr__(self, name: str) -> Any:
        """What a run has."""
        if name.startswith("_"):  # not asked by a loop, but by what copies or looks at objects
            raise AttributeError(name)
        return getattr(self.run, name)

    @property
    def is_open(self) -> bool:
        """Whether the run is open."""
        return self._run is not None

    @property
    def next_step(self) -> int:
        """The first step that nothing was logged at yet, for frameworks that may say none."""
        return self.step + bool(self._logged)

    @property
    def run(self) -> Any:
        """The run, opened now if it is not; after it has ended, the same run again."""
        if self._run is None:
            if self._has_ended:
                self.tracker.load_state_dict(self.tracker.state_dict())
            is_new = self.tracker.resume_id is None
            self._run = self.tracker.start(self.properties)
            if self._has_ended and isinstance(self._run, BareRun):
                self._run.go_on()  # it is the same life: nothing that was logged is logged again
            if self._is_step_due and (self.step > 0 or is_new):
                self._run.set_step(self.step)
            self._run.set_context(self._context)
        return self._run

    def get_context(self) -> dict[str, str]:
        """Return the persistent context, without opening the run."""
        return self._context if self._run is None else self._run.get_context()

    def set_context(self, context: dict[str, str]) -> None:
        """Replace the persistent context, without opening the run.

        Args:
            context: Tags of what the loop logs by itself; what the framework logs has its own.
        """
        if self._run is None:
            self._context = dict(context)
        else:
            self._run.set_context(context)

    def add_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Add hyperparameters.

        Args:
            hparams: Hyperparameters, nested as deep as you like.
        """
        if self._run is None:
            merged = {**self.properties.hparams, **hparams}
            self.properties = self.properties.model_copy(update={"hparams": merged})
            return
        try:
            self._run.add_hparams(hparams)
        except NotImplementedError as error:
            logger.warning("hyperparameters %s are not stored: %s", ", ".join(hparams), error)

    def set_step(self, step: int) -> None:
        """Set the step, without opening the run, unless the framework has gone back, which is left to ``log``.

        Args:
            step: Index of the step, as the framework counts.
        """
        if step <= self.step:
            return
        self.step, self._logged, self._is_step_due = step, {}, True
        if self._run is not None and not self._is_given:
            self._run.set_step(step)

    def log(self, metrics: Mapping[str, Any], step: int | None = None, context: dict[str, str] | None = None) -> None:
        """Log what a framework has, at the framework's step and without the persistent context.

        Args:
            metrics: Names and values, of any kind; what is no number is left out and named once.
            step: The step, which may be any; None for the current one. A run that was given open is logged to at the
                step where its owner has it, unless the framework goes back.
            context: Tags.
        """
        numbers = numbers_of(metrics)
        if not numbers:
            return
        run, tags = self.run, dict(context or {})
        before = run.get_context()
        if before:
            run.set_context({})
        try:
            if step is None and self._is_given:
                self._write(numbers, lambda some: run.scalars(some, tags))
                return
            at = self.step if step is None else step
            if at == self.step:
                known = self._logged.setdefault(json.dumps(tags, sort_keys=True, default=str), {})
                news = {name: value for name, value in numbers.items() if name not in known}
                self._write(news, lambda some: run.scalars(some, tags))
                numbers = {n: value for n, value in numbers.items() if n in known and not same(known[n], value)}
                known.update({**news, **numbers})
            self._write(numbers, lambda some: run.log_at(at, some, tags))
        finally:
            if before:
                run.set_context(before)

    def _write(self, numbers: dict[str, Any], write: Callable[[dict[str, Any]], None]) -> None:
        if not numbers:
            return
        try:
            write(numbers)
        except (TypeError, ValueError) as error:
            if len(numbers) > 1:
                for name, value in numbers.items():
                    self._write({name: value}, write)
            elif not numbers.keys() <= self._said:
                self._said.update(numbers)
                logger.warning("%r is not stored, now and perhaps later: %s", *numbers, error)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the tracker; nothing for a run that was given open, whose owner has it."""
        if self._is_given:
            return {}
        logged = {tags: {name: float(value) for name, value in known.items()} for tags, known in self._logged.items()}
        return {**self.tracker.state_dict(), "framework": json.dumps({"step": self.step, "logged": logged})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the run of a state, also if it is still open in this process, where training has failed.

        Args:
            state: What ``state_dict`` returned, or a state of the tracker.
        """
        if self._is_given:
            return
        self._context = self.get_context()
        if self._run is not None:
            self._run.finish()
        own = json.loads(state.get("framework", '{"step": 0, "logged": {}}'))
        self.tracker.load_state_dict({key: value for key, value in state.items() if key != "framework"})
        for other in list(self._all):
            if other is not self and other.is_open and other.tracker and other.tracker.run_id == self.tracker.resume_id:
                other.finish()
        self.step, self._logged = own["step"], own["logged"]
        self._run, self._has_ended, self._is_step_due = None, False, False

    def finish(self, error: BaseException | None = None) -> None:
        """Close the run, if it is open and was not given so. Asked for again, it is opened again.

        Args:
            error: What ended it, if it failed; by default ``self.error``.
        """
        if self._run is None or self._is_given:
            return
        self._context = self._run.get_context()
        self._run.finish(error or self.error)
        self._run, self.error, self._has_ended, self._is_step_due = None, None, True, False
