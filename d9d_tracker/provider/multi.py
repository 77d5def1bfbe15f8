"""Several backends at once: each gets everything, and none waits for another."""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from d9d_tracker.backend import RecordRun, RecordTracker
from d9d_tracker.base import BaseTracker, BaseTrackerRun, RunConfig
from d9d_tracker.config import TrackerConfig
from d9d_tracker.record import Histogram, Record

if TYPE_CHECKING:
    from d9d_tracker.factory import AnyTrackerConfig

_LOGGER = logging.getLogger("d9d_tracker")
_OPEN_TIMEOUT = 10.0
# What a wrong configuration or another writer raises; anything else means that the backend is down.
_FINAL_ERRORS = (ImportError, RuntimeError, TypeError, ValueError)


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


class PartRun(BaseTrackerRun):
    """One backend's run among several, opened in the background.

    Every call waits until the run is open. If the backend could not open it, every call tries again, and raises while
    it cannot. A rewind waits for the first such call, too.

    Args:
        name: What the backend is called in messages.
        tracker: Its tracker.
        properties: Name, description and hyperparameters of the run.
    """

    def __init__(self, name: str, tracker: BaseTracker[Any], properties: RunConfig):
        self._name = name
        self._tracker = tracker
        self._properties = properties
        self._context: AbstractContextManager[BaseTrackerRun] | None = None
        self._run: BaseTrackerRun | None = None
        self._rewind_to: int | None = None
        self._busy = threading.Lock()
        self.error: Exception | None = None
        self._opening = threading.Thread(target=self._open, name=f"d9d_tracker open {name}", daemon=True)
        self._opening.start()

    def wait(self, timeout: float) -> bool:
        """Wait until the backend has opened the run or failed to.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            Whether it is open; if not, ``error`` says why, or is None if the backend still tries.
        """
        self._opening.join(timeout)
        return self._run is not None

    @override
    def set_step(self, step: int) -> None:
        self._call(lambda run: run.set_step(step))

    @override
    def set_context(self, context: dict[str, str]) -> None:
        self._call(lambda run: run.set_context(context))

    @override
    def scalar(self, name: str, value: Any, context: dict[str, str] | None = None) -> None:
        self._call(lambda run: run.scalar(name, value, context))

    @override
    def bins(self, name: str, values: Any, context: dict[str, str] | None = None) -> None:
        self._call(lambda run: run.bins(name, values, context))

    @override
    def histogram(self, name: str, histogram: Histogram, context: dict[str, str] | None = None) -> None:
        self._call(lambda run: run.histogram(name, histogram, context))

    @override
    def write(self, records: Iterable[Record]) -> None:
        self._call(lambda run: run.write(records))

    @override
    def flush(self) -> None:
        self._call(lambda run: run.flush())

    @override
    def rewind(self, step: int) -> None:
        self._rewind_to = step

    def close(self, error: BaseException | None) -> None:
        """Close the run, after a call that is still in the backend.

        Args:
            error: What ended the run, if it failed.
        """
        self._opening.join()
        with self._busy:
            if self._context is not None:
                self._context.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)

    def _open(self) -> None:
        try:
            context = self._tracker.open(self._properties)
            self._run = context.__enter__()
            self._context, self.error = context, None
        except Exception as error:
            self.error = error

    def _call(self, method: Callable[[BaseTrackerRun], None]) -> None:
        self._opening.join()
        with self._busy:
            if self._run is None:
                self._open()
            if self._run is None:
                raise ConnectionError(f"{self._name} cannot be opened: {self.error!r}") from self.error
            if self._rewind_to is not None:
                try:
                    self._run.rewind(self._rewind_to)
                except Exception as error:  # never a ValueError, which would blame the record that comes next
                    step = self._rewind_to
                    raise ConnectionError(f"{self._name} cannot go back to step {step}: {error!r}") from error
                self._rewind_to = None
            method(self._run)


class MultiRun(RecordRun):
    """A run in several backends.

    Behind an accumulator each part has a queue, a thread and a backlog of its own. Bare, every call goes to one part
    after the other, and the first error surfaces after all had their turn.

    Args:
        run_id: Identity of this run.
        parts: The backends' runs by name.
    """

    def __init__(self, run_id: str, parts: dict[str, PartRun]):
        super().__init__(run_id)
        self._parts = parts

    def parts(self) -> Mapping[str, BaseTrackerRun]:
        """Return the backends' runs by name."""
        return self._parts

    @override
    def rewind(self, step: int) -> None:
        super().rewind(step)
        self._each(lambda part: part.rewind(step))

    @override
    def write_record(self, record: Record) -> None:
        def write(part: PartRun) -> None:
            part.set_step(record.step)
            if isinstance(record.value, Histogram):
                part.histogram(record.name, record.value, dict(record.context))
            else:
                part.scalar(record.name, record.value, dict(record.context))

        self._each(write)

    @override
    def sync(self) -> None:
        self._each(lambda part: part.flush())

    @override
    def release(self) -> None:
        """Close every part in a thread of its own, so that one that hangs keeps no other open."""
        errors: list[Exception] = []

        def close(part: PartRun) -> None:
            try:
                part.close(self._error)
            except Exception as error:
                if error is not self._error:
                    errors.append(error)

        closers = [threading.Thread(target=close, args=(part,), daemon=True) for part in self._parts.values()]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join()
        if errors:
            raise errors[0]

    def _each(self, method: Callable[[PartRun], None]) -> None:
        errors: list[Exception] = []
        for part in self._parts.values():
            try:
                method(part)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]


class MultiTracker(RecordTracker[MultiConfig]):
    """Opens a run in each of several backends; its state carries the identity of every one.

    A backend that is down when the run is opened is tried again with every window, which is kept on disk meanwhile.
    """

    def __init__(self, config: MultiConfig):
        from d9d_tracker.factory import tracker_from_config  # the factory imports this module

        super().__init__(config)
        self._trackers: dict[str, BaseTracker[Any]] = {}
        for number, child in enumerate(config.trackers):
            name = f"{number}-{getattr(child, 'provider', type(child).__name__)}"
            self._trackers[name] = tracker_from_config(child)

    @property
    def trackers(self) -> Mapping[str, BaseTracker[Any]]:
        """The backends' trackers by name: their position and their provider."""
        return self._trackers

    def state_dict(self) -> dict[str, Any]:
        """Return what a later process needs to re-attach to the runs, as plain JSON values."""
        return {**super().state_dict(), "trackers": {name: t.state_dict() for name, t in self._trackers.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, before ``open``.

        Args:
            state_dict: A state of the same backends in the same order.

        Raises:
            ValueError: If it is not such a state; the tracker is then unchanged.
        """
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
        parts = {name: PartRun(name, tracker, properties) for name, tracker in self._trackers.items()}
        run = MultiRun(run_id or secrets.token_hex(8), parts)
        deadline = time.monotonic() + _OPEN_TIMEOUT
        for name, part in parts.items():
            if part.wait(max(0.0, deadline - time.monotonic())):
                continue
            if isinstance(part.error, _FINAL_ERRORS):
                run.close(part.error)
                raise part.error
            _LOGGER.error(
                "%s is down: %s; the other backends go on, what is logged is kept for it and tried again",
                name,
                repr(part.error) if part.error else f"it has not opened the run for {_OPEN_TIMEOUT:g} s",
            )
        return run
