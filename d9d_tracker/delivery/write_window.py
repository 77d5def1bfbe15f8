"""How the records of a window reach a backend's run, and how a record at fault is told from a backend that is down."""

import logging
from collections.abc import Callable, Iterator
from typing import Protocol, cast

from d9d_tracker.base import BaseTrackerRun
from d9d_tracker.points import Points
from d9d_tracker.record import Record

from .report import DeliveryReport
from .window_queue import Queued

logger = logging.getLogger("d9d_tracker")

_ATTEMPTS = 5
_WITNESSES = 10


class Caller(Protocol):
    """Calls the backend, and knows since when it has been in there."""

    @property
    def stops(self) -> bool:
        """Whether the rest is to be left to the backlog."""
        ...

    def enter(self) -> None:
        """Note that the backend is at work from now on."""

    def call_backend(self, method: Callable[..., object], *arguments: object) -> object:
        """Call a method of the backend's run."""


class TakesWindows(Protocol):
    """A run that is handed whole windows, because another process has its backend."""

    def write_window(self, head: Queued, caller: Caller, report: DeliveryReport) -> None:
        """Do what ``WindowWriter.write`` does."""


class TakesPoints(Protocol):
    """A run that can refuse no point, and takes those of a window as columns."""

    def write_points(self, points: Points) -> None:
        """Take all of them, or raise and take none."""


def takes_points(run: BaseTrackerRun) -> bool:
    """Return whether a run takes columns.

    A subclass that overrides ``write_record`` alone wants to see every record.

    Args:
        run: The backend's run.
    """
    hooks = ("write_points", "write_record")
    kind = next((kind for kind in type(run).__mro__ if any(hook in vars(kind) for hook in hooks)), object)
    return "write_points" in vars(kind)


def write_window(run: BaseTrackerRun, head: Queued, caller: Caller, report: DeliveryReport) -> None:
    """Write what the backend has not accepted of a window, unless it is to be left.

    Args:
        run: The backend's run.
        head: The window, in memory; what is refused is taken out.
        caller: Calls the backend.
        report: Counts what is refused.

    Raises:
        Exception: What the backend raised, if it is down.
    """
    assert head.records is not None
    if hasattr(run, "write_window"):
        caller.call_backend(cast(TakesWindows, run).write_window, head, caller, report)
    elif takes_points(run) and not head.accepted:
        caller.call_backend(cast(TakesPoints, run).write_points, Points.of(head.records))
        head.accepted = len(head.records)
    else:
        records = head.records = list(head.records)
        WindowWriter(run, caller, report).write(head, records)


class WindowWriter:
    """Writes windows to one backend's run.

    A record that the backend raises on is tried again. If the backend accepts another record of the same step
    meanwhile, the record itself is at fault: after five attempts (at once for a ``TypeError`` or ``ValueError``) it is
    refused, named and counted.

    Args:
        run: The backend's run.
        caller: Calls it.
        report: Counts what is refused.
    """

    def __init__(self, run: BaseTrackerRun, caller: Caller, report: DeliveryReport):
        self._run = run
        self._caller = caller
        self._report = report

    def write(self, head: Queued, records: list[Record]) -> None:
        """Write what the backend has not accepted of a window, unless it is to be left.

        Args:
            head: The window.
            records: Its records; those that are refused are taken out.

        Raises:
            Exception: What the backend raised, if it is down.
        """
        while head.accepted < len(records) and not self._caller.stops:
            try:
                self._caller.call_backend(self._run.write, self._rest(head, records))
            except Exception as error:
                if head.accepted == len(records):
                    raise
                if isinstance(error, (TypeError, ValueError)):
                    self._refuse(head, records, error)
                else:
                    record = records[head.accepted]
                    self._find_witness(head, records, error)
                    self._insist(head, records, record, error)
            else:
                if head.accepted < len(records) and not self._caller.stops:
                    raise RuntimeError("`write` returned before it had asked for all points; consume its argument")

    def _rest(self, head: Queued, records: list[Record]) -> Iterator[Record]:
        """Yield what is left of a window; a record is accepted once the next is asked for."""
        caller = self._caller
        for position in range(head.accepted, len(records)):
            head.accepted = position
            if caller.stops:
                return
            caller.enter()
            yield records[position]
        head.accepted = len(records)

    def _refuse(self, head: Queued, records: list[Record], error: Exception) -> None:
        record = records.pop(head.accepted)
        self._report.failures += 1
        self._report.refused[record.name] += 1
        logger.error("the backend refused %s at step %d: %r", record.name, record.step, error)

    def _find_witness(self, head: Queued, records: list[Record], error: Exception) -> None:
        """Have the backend accept another record than the one it raised on, or give the error back: it is down.

        The other one is of the same step, because steps never go back: one that is still to be written, which then
        comes first, or the last one that was, once more with the same value.
        """
        step = records[head.accepted].step
        for position in range(head.accepted + 1, min(head.accepted + 1 + _WITNESSES, len(records))):
            witness = records[position]
            if witness.step == step and not self._caller.stops and self._takes(witness):
                records.insert(head.accepted, records.pop(position))
                head.accepted += 1
                return
        last = records[head.accepted - 1] if head.accepted else None
        if last is None or last.step != step or not self._takes(last):
            raise error

    def _insist(self, head: Queued, records: list[Record], record: Record, error: Exception) -> None:
        for _ in range(_ATTEMPTS - 1):
            self._report.failures += 1
            try:
                self._caller.call_backend(self._run.write, [record])
            except Exception as again:
                error = again
            else:
                head.accepted += 1
                return
        self._refuse(head, records, error)

    def _takes(self, record: Record) -> bool:
        try:
            self._caller.call_backend(self._run.write, [record])
        except Exception:
            return False
        return True
