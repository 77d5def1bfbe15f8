"""Several backends at once: behind an accumulator each has a thread, a queue and a backlog of its own."""

import secrets
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from d9d_tracker.backend import RecordRun, RecordTracker
from d9d_tracker.base import BaseTracker, BaseTrackerRun, RunConfig
from d9d_tracker.config import TrackerConfig
from d9d_tracker.record import Histogram, Record

if TYPE_CHECKING:
    from d9d_tracker.factory import AnyTrackerConfig


class MultiConfig(TrackerConfig):
    """Configuration of several backends at once.

    Attributes:
        provider: Discriminator, always ``"multi"``.
        trackers: The backends. Values accumulate once, in front of all of them: their own ``accumulator`` is None.
    """

    provider: Literal["multi"] = "multi"
    trackers: "list[AnyTrackerConfig]" = Field(min_length=1)

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        for tracker in self.trackers:
            if isinstance(tracker, MultiConfig):
                raise ValueError("a multi within a multi: list its trackers beside the others")
            if "accumulator" in tracker.model_fields_set and tracker.accumulator is not None:
                raise ValueError(
                    f"accumulator of {type(tracker).__name__}: values accumulate once, so set it beside 'trackers'"
                )
        self.trackers = [tracker.model_copy(update={"accumulator": None}) for tracker in self.trackers]
        return self

    def by_name(self) -> dict[str, "AnyTrackerConfig"]:
        """Return the backends' configurations by name: their position and their provider."""
        return {
            f"{number}-{getattr(child, 'provider', type(child).__name__)}": child
            for number, child in enumerate(self.trackers)
        }


class MultiRun(RecordRun):
    """A bare run in several backends: every call goes to one after the other, and the first error surfaces after all.

    Args:
        run_id: Identity of this run.
        runs: The backends' runs by name.
        stack: Closes them.
    """

    def __init__(self, run_id: str, runs: dict[str, BaseTrackerRun], stack: ExitStack):
        super().__init__(run_id)
        self._runs = runs
        self._stack = stack

    @override
    def rewind(self, step: int) -> None:
        super().rewind(step)
        self._each(lambda run: run.rewind(step))

    @override
    def write_record(self, record: Record) -> None:
        def write(run: BaseTrackerRun) -> None:
            run.set_step(record.step)
            if isinstance(record.value, Histogram):
                run.histogram(record.name, record.value, dict(record.context))
            else:
                run.scalar(record.name, record.value, dict(record.context))

        self._each(write)

    @override
    def sync(self) -> None:
        self._each(lambda run: run.flush())

    @override
    def release(self) -> None:
        error = self._error
        self._stack.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)

    def _each(self, method: Callable[[BaseTrackerRun], None]) -> None:
        errors: list[Exception] = []
        for run in self._runs.values():
            try:
                method(run)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]


class MultiTracker(RecordTracker[MultiConfig]):
    """Stands for the trackers of several backends; its state carries theirs.

    Args:
        trackers: The backends' trackers by name.
    """

    def __init__(self, trackers: Mapping[str, BaseTracker[Any]]):
        self._trackers = dict(trackers)

    @classmethod
    @override
    def from_config(cls, config: MultiConfig) -> Self:
        raise TypeError("several backends are made by tracker_from_config")

    @override
    def backends(self) -> dict[str, BaseTracker[Any]]:
        return dict(self._trackers)

    @property
    def trackers(self) -> Mapping[str, BaseTracker[Any]]:
        """The backends' trackers by name."""
        return self._trackers

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "trackers": {name: t.state_dict() for name, t in self._trackers.items()}}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        states = state_dict.get("trackers", {})
        if state_dict.get("run_id", "") != "" and list(states) != list(self._trackers):
            raise ValueError(
                f"the state belongs to the trackers {', '.join(states) or 'none'} and these are "
                f"{', '.join(self._trackers)}; resume with the trackers that the run was started with"
            )
        before = self.state_dict()
        super().load_state_dict(state_dict)
        try:
            for name, tracker in self._trackers.items():
                tracker.load_state_dict(states[name])
        except Exception:
            super().load_state_dict(before)
            for name, tracker in self._trackers.items():
                tracker.load_state_dict(before["trackers"][name])
            raise

    @override
    def open_run(self, properties: RunConfig, run_id: str | None) -> MultiRun:
        with ExitStack() as stack:
            runs = {name: stack.enter_context(tracker.open(properties)) for name, tracker in self._trackers.items()}
            return MultiRun(run_id or secrets.token_hex(16), runs, stack.pop_all())
