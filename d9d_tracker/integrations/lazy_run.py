"""A run that is opened when it is first asked for, and again when it is asked for after its end."""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar, Self, cast

from pydantic import TypeAdapter

from d9d_tracker.accumulator import AccumulatingRun
from d9d_tracker.bare_run import BareRun
from d9d_tracker.base import BaseTracker, BaseTrackerRun, RunConfig
from d9d_tracker.config import TrackerConfig
from d9d_tracker.factory import AnyTrackerConfig, tracker_from_config

logger = logging.getLogger("d9d_tracker")

AnyTracker = BaseTracker[Any] | TrackerConfig | dict[str, Any]
AnyRun = AccumulatingRun | BareRun


class LazyRun:
    """What it does not have itself, it has from the run: ``scalar``, ``bins`` and the others open it."""

    _all_open: ClassVar[set[Self]] = set()

    def __init__(
        self,
        tracker: AnyTracker | BaseTrackerRun,
        properties: RunConfig | None = None,
        is_alone: bool = False,
        monitor: bool = False,
    ):
        self._is_given = isinstance(tracker, BaseTrackerRun)
        self._run = cast(AnyRun, tracker) if isinstance(tracker, BaseTrackerRun) else None
        self.tracker: Any = None if isinstance(tracker, BaseTrackerRun) else _tracker_of(tracker, is_alone)
        self.properties = properties or RunConfig(name="run")
        self.step = 0
        self.error: BaseException | None = None  # has ended the run, which the framework closes later
        self._context: dict[str, str] = {}  # of a run that is not open
        self._is_step_due = True
        self._has_ended = False
        self.monitors = monitor
        if self._run is not None:
            self._monitor(self._run)

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
    def run(self) -> AnyRun:
        """The run, opened now if it is not; after it has ended, the same run again."""
        if self._run is None:
            if self._has_ended:
                self.tracker.load_state_dict(self.tracker.state_dict())
            is_new = self.tracker.resume_id is None
            run: AnyRun = self.tracker.start(self.properties)
            self._run = run
            self._all_open.add(self)
            if self._has_ended and isinstance(run, BareRun):
                run.go_on()  # it is the same life: nothing that was logged is logged again
            self._monitor(run)
            if self._is_step_due and (self.step > 0 or is_new):
                run.set_step(self.step)
            run.set_context(self._context)
        return self._run

    def anew(self, properties: RunConfig | None = None) -> Self:
        """Close the run, and return what opens another one of the same tracker."""
        self.finish()
        return type(self)(self.tracker, properties, monitor=self.monitors)

    def _monitor(self, run: AnyRun) -> None:
        if self.monitors and isinstance(run, BareRun):
            logger.warning("monitor=True: a run without an accumulator measures nothing; leave accumulator as it is")
        elif self.monitors:
            run.monitor()

    def get_context(self) -> dict[str, str]:
        """Return the persistent context, without opening the run."""
        return self._context if self._run is None else self._run.get_context()

    def set_context(self, context: dict[str, str]) -> None:
        """Replace the persistent context, without opening the run."""
        if self._run is None:
            self._context = dict(context)
        else:
            self._run.set_context(context)

    def add_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Add hyperparameters: to those that the run is opened with, or later."""
        if self._run is None:
            merged = {**self.properties.hparams, **hparams}
            self.properties = self.properties.model_copy(update={"hparams": merged})
            return
        try:
            self._run.add_hparams(hparams)
        except NotImplementedError as error:
            logger.warning("hyperparameters %s are not stored: %s", ", ".join(hparams), error)

    def set_step(self, step: int) -> None:
        """Set the step, without opening the run, unless the framework has gone back."""
        if step <= self.step:
            return
        self.step, self._is_step_due = step, True
        if self._run is not None and not self._is_given:
            self._run.set_step(step)

    def load(self, state: dict[str, Any], step: int) -> None:
        """Go on with the run of a tracker's state, also if it is still open in this process, after a failure."""
        self.finish()
        self.tracker.load_state_dict(state)
        for other in [one for one in self._all_open if one.tracker.run_id == self.tracker.resume_id]:
            other.finish()
        self.step, self._has_ended, self._is_step_due = step, False, False

    def finish(self, error: BaseException | None = None) -> None:
        """Close the run, if it is open and was not given so. Asked for again, it is opened again."""
        if self._run is None or self._is_given:
            return
        self._context = self._run.get_context()
        self._all_open.discard(self)
        self._run.finish(error or self.error)
        self._run, self.error, self._has_ended, self._is_step_due = None, None, True, False


def _tracker_of(given: AnyTracker, is_alone: bool) -> BaseTracker[Any]:
    if isinstance(given, BaseTracker):
        return given
    config = cast(TrackerConfig, TypeAdapter(AnyTrackerConfig).validate_python(given))
    if is_alone and config.accumulator is not None and config.accumulator.distributed == "auto":
        alone = config.accumulator.model_copy(update={"distributed": "off"})
        config = config.model_copy(update={"accumulator": alone})
    return tracker_from_config(config)
