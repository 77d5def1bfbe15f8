"""Several backends at once: behind an accumulator each has a thread, a queue and a backlog of its own."""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from d9d_tracker.backend import open_sink
from d9d_tracker.bare_run import BareRun
from d9d_tracker.base import BaseTracker, RunConfig, check_properties
from d9d_tracker.config import TrackerConfig

if TYPE_CHECKING:
    AnyTrackerConfig = TrackerConfig  # the factory knows all of them, and gives the name its meaning


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


class MultiTracker(BaseTracker[MultiConfig]):
    """Stands for the trackers of several backends; its state carries theirs."""

    def __init__(self, trackers: Mapping[str, BaseTracker[Any]]):
        self._trackers = dict(trackers)

    @classmethod
    @override
    def from_config(cls, config: MultiConfig) -> Self:
        raise TypeError("several backends are made by tracker_from_config")

    @override
    def backends(self) -> dict[str, BaseTracker[Any]]:
        return dict(self._trackers)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "trackers": {name: t.state_dict() for name, t in self._trackers.items()}}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "run_id" not in state_dict:
            raise ValueError("the state of a MultiTracker has a 'run_id' and 'trackers'; this one is another's")
        states = state_dict.get("trackers", {})
        if list(states) != list(self._trackers):
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

    @contextmanager
    @override
    def open(self, properties: RunConfig) -> Iterator[BareRun]:
        check_properties(properties)
        resumed = self.resume_id is not None
        self.run_id, self.resume_id = self.resume_id or secrets.token_hex(16), None
        with ExitStack() as stack:
            sinks = [stack.enter_context(open_sink(tracker, properties)) for tracker in self._trackers.values()]
            yield BareRun(sinks, resumed)
