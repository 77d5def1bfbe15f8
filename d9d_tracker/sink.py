"""What a backend implements: an open run that takes finished points, apart from what a training loop logs to."""

import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from typing_extensions import override

from .base import BaseTrackerRun
from .points import Points
from .record import Record

ATTEMPTS = 5
_WITNESSES = 10
_OF_THE_MACHINE = OSError, EOFError, MemoryError


class SinkLostError(ConnectionError):
    """The sink is gone, with what it had not made durable: open the backend again and write from there."""


def is_of_code(error: BaseException) -> bool:
    """Whether an error is one that Python itself has for what code makes of a value, neither an SDK's nor a disk's."""
    return type(error).__module__ == "builtins" and not isinstance(error, _OF_THE_MACHINE)


class Refusal(NamedTuple):
    """A point that a backend will never store.

    Attributes:
        name: Name of the series.
        step: Step of the point.
        error: What the backend raised.
    """

    name: str
    step: int
    error: BaseException


@dataclass
class Taken:
    """How far a sink came with points.

    Attributes:
        accepted: How many of them, from the first on, are done with: taken or refused.
        refused: Which of these are lost.
        failures: How often the backend raised.
        error: What it raised last if it is down, so that the points behind wait; else None.
    """

    accepted: int = 0
    refused: list[Refusal] = field(default_factory=list)
    failures: int = 0
    error: BaseException | None = None


class Sink(ABC):
    """An open run of a backend, for whoever hands it points; one thread calls it at a time.

    Attributes:
        step: The last step that was written, where that is known.
        on_progress: Called now and then while points are written, with whether the backend has done something since.
            What it raises goes through.
    """

    step: int = 0
    on_progress: Callable[[bool], object] = staticmethod(lambda _: None)

    @abstractmethod
    def write_points(self, points: Points) -> Taken:
        """Take points; they need not be durable before ``flush``.

        Args:
            points: Points in the order of their steps. One may come again, after a failure of any point behind it: the
                last one of a series and step holds.

        Returns:
            How far it came. What the backend raises is told there, not raised.

        Raises:
            SinkLostError: If what was written since the last ``flush`` is gone as well.
        """

    def takes(self, action: Callable[..., object], arguments: Mapping[str, object]) -> bool:
        """Return whether the run is where an action can be done."""
        return True

    def call(self, action: Callable[..., Any], arguments: Mapping[str, object], run: BaseTrackerRun) -> Any:
        """Have something done with the run, where it is.

        Args:
            action: What to do.
            arguments: What it gets besides, by name.
            run: What it gets first, if it is done here: what a loop logs to, over this.
        """
        return action(run, **arguments)

    def flush(self) -> None:  # noqa: B027 many backends have nothing to do
        """Block until everything that was written is durable. Does nothing by default."""

    def rewind(self, step: int) -> None:  # noqa: B027 the docstring says for whom that is right
        """Take back what an earlier life of this run wrote at ``step`` or later.

        Does nothing by default, which is right for a backend that overwrites a point written again at the same step.

        Args:
            step: First step that will be written again.
        """

    def add_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Add hyperparameters to those that the run was opened with.

        Args:
            hparams: Hyperparameters, nested as deep as you like.

        Raises:
            NotImplementedError: If the backend takes them on opening only.
        """
        raise NotImplementedError(f"{type(self).__name__} takes hyperparameters on opening only")


class RecordSink(Sink):
    """A sink that takes one record at a time, and may raise on it.

    ``TypeError`` and ``ValueError`` refuse a record for good. On anything else another record of the same step is
    tried, or else, if the error is neither of an SDK nor an ``OSError``, the last one that the backend took, which must
    become durable then. If it takes that, the record is at fault, and is refused after five attempts; if not, or where
    there is none, the backend is down.
    """

    _last_taken: Record | None = None

    @abstractmethod
    def write_record(self, record: Record) -> None:
        """Take one record; it need not be durable before ``flush``.

        Args:
            record: The point.

        Raises:
            TypeError: If it can never be stored; ``ValueError`` says the same.
            Exception: If the backend is down.
        """

    @override
    def write_points(self, points: Points) -> Taken:
        taken, records, early = Taken(), list(points), set[int]()
        for place, record in enumerate(records):
            self.on_progress(True)
            if place not in early and (error := self._attempt(record, taken)) is not None:
                if not isinstance(error, TypeError | ValueError):
                    if not self._takes_another(place, records, early, error):
                        taken.error = error
                        return taken
                    for _ in range(ATTEMPTS - 1):
                        error = None if error is None else self._attempt(record, taken)
                if error is not None:
                    taken.refused.append(Refusal(record.name, record.step, error))
                    taken.accepted = place + 1
                    continue
            self._last_taken, self.step, taken.accepted = record, max(self.step, record.step), place + 1
        return taken

    def _attempt(self, record: Record, taken: Taken) -> Exception | None:
        try:
            self.write_record(record)
        except Exception as error:
            taken.failures += 1
            return error
        return None

    def _takes_another(self, place: int, records: list[Record], early: set[int], error: Exception) -> bool:
        """Have the backend take one more record: a later one of the same step, or the last one again.

        On a full disk, or where its SDK knows it already, the last one may be taken though a new one cannot be. So of
        another step it tells something only of errors that Python itself has for what code makes of a value.
        """
        step, last = records[place].step, self._last_taken
        for later in range(place + 1, min(place + 1 + _WITNESSES, len(records))):
            if records[later].step == step and later not in early and self._attempt(records[later], Taken()) is None:
                early.add(later)
                return True
        with suppress(Exception):
            if last is None or last.step > self.step:  # it was taken back since
                return False
            if last.step != step and not is_of_code(error):
                return False
            self.write_record(last)
            if last.step != step:  # to note it proves nothing of a backend that stores what was noted later
                self.flush()
            return True
        return False


class LoopSink(RecordSink):
    """A sink over a run that implements what a training loop logs to, and nothing else.

    Args:
        run: The run.
    """

    def __init__(self, run: BaseTrackerRun):
        self.run = run

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run, name)

    @override
    def write_record(self, record: Record) -> None:
        self.run.write([record])

    @override
    def flush(self) -> None:
        self.run.flush()

    @override
    def rewind(self, step: int) -> None:
        self.run.rewind(step)

    @override
    def add_hparams(self, hparams: Mapping[str, Any]) -> None:
        self.run.add_hparams(hparams)


class RecordRun(RecordSink):
    """What most backends derive from: each point comes to ``write_record``, and the run is closed once.

    Not thread safe: one thread calls it at a time, but not always the one that opened the run. A process forked while
    the run is open has no part in it: there it is closed. A run that can refuse no point may override
    ``write_columns``, and takes those of a window at once.

    Args:
        run_id: The backend's identity of this run; by default, one that no other run has.
        step: The last step that an earlier life of the run has written.

    Attributes:
        id: The backend's identity of this run.
    """

    def __init__(self, run_id: str | None = None, step: int = 0):
        self.id = run_id or secrets.token_hex(16)
        self.step = step
        self._closed = False
        self._error: BaseException | None = None
        self._process = os.getpid()

    def write_columns(self, points: Points) -> None:
        """Take all points at once, or raise and take none. Never called unless a subclass overrides it.

        Args:
            points: At least one point.
        """
        raise NotImplementedError

    def sync(self) -> None:
        """Make everything written so far durable. Does nothing by default."""

    def release(self) -> None:
        """Make everything durable and let go of what the run holds. Called once. Only syncs by default."""
        self.sync()

    @property
    def is_open(self) -> bool:
        """Whether it takes points."""
        return not self._closed and os.getpid() == self._process

    @override
    def write_points(self, points: Points) -> Taken:
        if not points or not self._takes_columns():
            return super().write_points(points)
        self.on_progress(True)
        try:
            self.write_columns(points)
        except Exception as error:
            return Taken(failures=1, error=error)
        self.step = max(self.step, points.last)
        return Taken(len(points))

    def _takes_columns(self) -> bool:
        # A subclass that overrides `write_record` alone wants to see every record.
        hooks = ("write_columns", "write_record")
        kind = next(kind for kind in type(self).__mro__ if any(hook in vars(kind) for hook in hooks))
        return "write_columns" in vars(kind) and kind is not RecordRun

    @override
    def flush(self) -> None:
        """Block until everything written so far is durable; closing the run did so before it let go.

        Raises:
            OSError: If the backend cannot store it. What a failed flush leaves behind, the backend's run documents.
        """
        if self.is_open:
            self.sync()

    @override
    def rewind(self, step: int) -> None:
        """Take back what an earlier life of this run wrote at ``step`` or later; by default, only note the step.

        Args:
            step: First step that will be written again.
        """
        self.step = min(self.step, step)

    def close(self, error: BaseException | None = None) -> None:
        """Close the run. Closing again does nothing.

        Args:
            error: What ended the run, if it failed: backends that show how a run ended show that.
        """
        if self.is_open:
            self._closed, self._error = True, error
            self.release()
