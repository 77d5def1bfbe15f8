"""The run of a framework: opened when it is first asked for, and again when it is asked for after its end."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Self, cast

from pydantic import TypeAdapter

from d9d_tracker.accumulator import AccumulatingRun
from d9d_tracker.bare_run import BareRun
from d9d_tracker.base import BaseTracker, BaseTrackerRun, RunConfig
from d9d_tracker.config import TrackerConfig
from d9d_tracker.factory import AnyTrackerConfig, tracker_from_config
from d9d_tracker.log import logger
from d9d_tracker.watch.watch import Watch

from .framework_values import numbers_of, same

AnyTracker = BaseTracker[Any] | TrackerConfig | dict[str, Any]
AnyRun = AccumulatingRun | BareRun


class FrameworkRun:
    """Puts what a framework logs at the step that the framework says, where the last value stands.

    A first value is the mean of the ranks' values; one that replaces it, or comes for another step than the current
    one, is rank 0's. What this does not have itself, it has from the run: ``scalar``, ``bins`` and the others open it.
    """

    _all_open: ClassVar[set[Self]] = set()

    def __init__(
        self,
        tracker: AnyTracker | BaseTrackerRun,
        properties: RunConfig | None = None,
        is_alone: bool = False,
        monitor: bool = False,
    ):
        self.is_given = isinstance(tracker, BaseTrackerRun)
        self._run = cast(AnyRun, tracker) if isinstance(tracker, BaseTrackerRun) else None
        self.tracker: Any = None if isinstance(tracker, BaseTrackerRun) else _tracker_of(tracker, is_alone)
        self.properties = properties or RunConfig(name="run")
        self.step = 0
        self.error: BaseException | None = None  # has ended the run, which the framework closes later
        self._context: dict[str, str] = {}  # of a run that is not open
        self._is_step_due = True
        self._has_ended = False
        self.monitors = monitor
        self._logged: dict[str, dict[str, Any]] = {}  # at this step, by context and name
        self._said: set[str] = set()
        self._watching: Watch | None = None
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
        """Set the step, without opening the run, unless the framework has gone back, which is left to ``log``."""
        if step <= self.step:
            return
        self.step, self._is_step_due, self._logged = step, True, {}
        if self._run is not None and not self.is_given:
            self._run.set_step(step)

    def finish(self, error: BaseException | None = None) -> None:
        """Close the run, if it is open and was not given so. Asked for again, it is opened again."""
        if self._run is None or self.is_given:
            return
        self._context = self._run.get_context()
        self._all_open.discard(self)
        self._run.finish(error or self.error)
        self._run, self.error, self._has_ended, self._is_step_due = None, None, True, False

    @property
    def next_step(self) -> int:
        """The first step that nothing was logged at yet, for frameworks that may say none."""
        return self.step + bool(self._logged)

    def log(self, metrics: Mapping[str, Any], step: int | None = None, context: dict[str, str] | None = None) -> None:
        """Log what a framework has, without the persistent context; what is no number is left out and named once.

        The step may be any; None is the current one, which in a run that was given open is where its owner has it.
        """
        numbers = numbers_of(metrics)
        if not numbers:
            return
        tags, at = dict(context or {}), self.step if step is None else step
        with self.without_context() as run:
            if step is None and self.is_given:
                self._write(numbers, lambda some: run.scalars(some, tags))
                return
            if at == self.step:
                known = self._logged.setdefault(json.dumps(tags, sort_keys=True, default=str), {})
                news = {name: value for name, value in numbers.items() if name not in known}
                self._write(news, lambda some: run.scalars(some, tags))
                numbers = {n: value for n, value in numbers.items() if n in known and not same(known[n], value)}
                known.update({**news, **numbers})
            self._write(numbers, lambda some: run.log_at(at, some, tags))

    def start_watching(self, model: Any, settings: dict[str, Any]) -> None:
        """Have ``run.watch`` watch a model, until ``stop_watching``; without any settings, nothing."""
        self._watching = self.run.watch(model, **settings) if settings else None

    def stop_watching(self) -> None:
        """Watch the model no longer."""
        if self._watching is not None:
            self._watching.remove()
            self._watching = None

    @contextmanager
    def without_context(self) -> Iterator[AnyRun]:
        """Take the persistent context, which is the loop's, away for a block, which gets the open run."""
        run = self.run
        with run.context():
            run.set_context({})
            yield run

    def _write(self, numbers: dict[str, Any], write: Callable[[dict[str, Any]], None]) -> None:
        try:
            if numbers:
                write(numbers)
        except (TypeError, ValueError) as error:
            if len(numbers) > 1:  # the others are not at fault
                for name, value in numbers.items():
                    self._write({name: value}, write)
            elif not numbers.keys() <= self._said:
                self._said.update(numbers)
                logger.warning("%r is not stored, now and perhaps later: %s", *numbers, error)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the tracker; nothing for a run that was given open, whose owner has it."""
        if self.is_given:
            return {}
        logged = {tags: {name: float(number) for name, number in known.items()} for tags, known in self._logged.items()}
        return {**self.tracker.state_dict(), "framework": json.dumps({"step": self.step, "logged": logged})}

    def state_of_all(self) -> dict[str, Any]:
        """Return, on rank 0, a state that holds what all ranks have logged; every rank must call it."""
        if getattr(self.tracker, "world_size", 1) == 1:
            return self.state_dict()
        if self._run is not None:
            self._run.flush()  # what the other ranks have logged is merged then
        state = self.state_dict()
        return {**next(iter(state["ranks"].values())), "framework": state["framework"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the run of a state, or of one of the tracker, also if it is still open here, after a failure."""
        if self.is_given:
            return
        own = json.loads(state.get("framework", '{"step": 0, "logged": {}}'))
        self.finish()
        self.tracker.load_state_dict({key: value for key, value in state.items() if key != "framework"})
        for other in [one for one in self._all_open if one.tracker.run_id == self.tracker.resume_id]:
            other.finish()
        self.step, self._logged, self._has_ended, self._is_step_due = own["step"], own["logged"], False, False


def _tracker_of(given: AnyTracker, is_alone: bool) -> BaseTracker[Any]:
    if isinstance(given, BaseTracker):
        return given
    config = cast(TrackerConfig, TypeAdapter(AnyTrackerConfig).validate_python(given))
    if is_alone and config.accumulator is not None and config.accumulator.distributed == "auto":
        alone = config.accumulator.model_copy(update={"distributed": "off"})
        config = config.model_copy(update={"accumulator": alone})
    return tracker_from_config(config)
