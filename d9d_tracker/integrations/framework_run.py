"""What a framework logs: it is finished, and has a step of the framework's."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from d9d_tracker.accumulator.watch.watch import Watch

from .framework_values import numbers_of, same
from .lazy_run import AnyRun, LazyRun

logger = logging.getLogger("d9d_tracker")


class FrameworkRun(LazyRun):
    """Puts what a framework logs at the step that the framework says, where the last value stands.

    A first value is the mean of the ranks' values; one that replaces it, or comes for another step than the current
    one, is rank 0's.
    """

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self._logged: dict[str, dict[str, Any]] = {}  # at this step, by context and name
        self._said: set[str] = set()
        self._watching: Watch | None = None

    @property
    def next_step(self) -> int:
        """The first step that nothing was logged at yet, for frameworks that may say none."""
        return self.step + bool(self._logged)

    def set_step(self, step: int) -> None:
        """Set the step, without opening the run, unless the framework has gone back, which is left to ``log``."""
        if step > self.step:
            self._logged = {}
        super().set_step(step)

    def log(self, metrics: Mapping[str, Any], step: int | None = None, context: dict[str, str] | None = None) -> None:
        """Log what a framework has, without the persistent context; what is no number is left out and named once.

        The step may be any; None is the current one, which in a run that was given open is where its owner has it.
        """
        numbers = numbers_of(metrics)
        if not numbers:
            return
        tags, at = dict(context or {}), self.step if step is None else step
        with self.without_context() as run:
            if step is None and self._is_given:
                self._write(numbers, lambda some: run.scalars(some, tags))
                return
            if at == self.step:
                known = self._logged.setdefault(json.dumps(tags, sort_keys=True, default=str), {})
                news = {name: value for name, value in numbers.items() if name not in known}
                self._write(news, lambda some: run.scalars(some, tags))
                numbers = {n: value for n, value in numbers.items() if n in known and not same(known[n], value)}
                known.update({**news, **numbers})
            self._write(numbers, lambda some: run.log_at(at, some, tags))

    def watch(self, model: Any, settings: dict[str, Any]) -> None:
        """Have ``run.watch`` watch a model, until ``unwatch``; without any settings, nothing."""
        self._watching = self.run.watch(model, **settings) if settings else None

    def unwatch(self) -> None:
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
        if self._is_given:
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
        """Go on with the run of a state, or of one of the tracker."""
        if not self._is_given:
            own = json.loads(state.get("framework", '{"step": 0, "logged": {}}'))
            self.load({key: value for key, value in state.items() if key != "framework"}, own["step"])
            self._logged = own["logged"]
