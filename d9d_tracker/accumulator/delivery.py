"""Handing records to a backend, in order, on a thread of its own, whatever the backend does."""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from d9d_tracker.base import BaseTrackerRun
from d9d_tracker.record import Record

from .backlog import Backlog, Contents

logger = logging.getLogger("d9d_tracker")

_FIRST_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 30.0
_CLOSING_RETRY_SECONDS = 1.0
_ATTEMPTS = 5
_WITNESSES = 10


@dataclass
class DeliveryReport:
    """What became of the records of a run.

    Attributes:
        delivered: Records that the backend has accepted and made durable.
        refused: Records that the backend raised on while it accepted others, by series name. They are lost.
        dropped: Records that no longer fitted into the backlog. They are lost.
        undelivered: Records that the backend had not accepted when the run closed.
        failures: How often the backend raised.
        unread: Windows that never reached the host, because of an error on the device. They are lost.
    """

    delivered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    dropped: int = 0
    undelivered: int = 0
    failures: int = 0
    unread: int = 0


@dataclass(eq=False)
class _Queued:
    """A window on its way to the backend.

    ``records`` are all of it, because what is kept on disk must be whole: a later process takes back what the backend
    has of a window before it delivers it. They are None while they are on disk only.
    """

    index: int
    contents: Contents
    records: list[Record] | None
    kept: bool = False
    accepted: int = 0


class Delivery:
    """A backend's queue and thread.

    A record that the backend raises on is tried again. If the backend accepts another record of the same step
    meanwhile, the record itself is at fault: after five attempts (at once for a ``TypeError`` or ``ValueError``) it is
    refused, named and counted. If it does not, the backend is down: everything waits in the backlog on disk, and is
    tried again with growing pauses. A backend that does not return from a call counts as down as well.

    Args:
        run: The backend's run; used from this object's thread only.
        backlog: Where windows are kept while the backend is down. What an earlier process left there goes first.
        patience: Seconds that a call of the backend may take before it counts as hanging.
    """

    def __init__(self, run: BaseTrackerRun, backlog: Backlog, patience: float):
        self.report = DeliveryReport()
        self._run = run
        self._backlog = backlog
        self._patience = patience
        self._changed = threading.Condition()
        self._queue = deque(_Queued(index, contents, None, kept=True) for index, contents in backlog.contents().items())
        self._down_since: float | None = None
        self._called_at: float | None = None  # since when the thread has been inside the backend
        self._keeping_failed = False
        self._closing = False
        self._stop = False
        self._thread = threading.Thread(target=self._work, name="d9d_tracker delivery", daemon=True)
        self._thread.start()

    def put(self, window: int, records: list[Record], first: int) -> None:
        """Queue the records of a window. Never waits for the backend.

        Args:
            window: Index of the window.
            records: Its records, in the order of their steps, at least one.
            first: The first step that this window writes and no earlier one does.
        """
        with self._changed:
            self._queue.append(_Queued(window, Contents.of(records, first), records))
            if self._down_since is None and self._hangs():
                self.report.failures += 1
                self._go_down(f"it has not returned from a call for {self._patience:g} s")
            if self._down_since is not None:
                self._keep()
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Wait until the backend has accepted everything that was put, and say what it has not.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            Whether it has.
        """
        with self._changed:
            done = self._changed.wait_for(lambda: not self._queue, timeout)
            if not done:
                logger.error("flush: not with the backend after %g s, still queued: %s", timeout, _words(self._queue))
            return done

    def settle(self, timeout: float) -> list[int]:
        """Wait until everything that was put is safe: accepted by the backend, or else in the backlog on disk.

        Args:
            timeout: Seconds to wait for the backend, at most.

        Returns:
            The windows that are in the backlog.
        """
        with self._changed:
            if not self._changed.wait_for(self._is_safe, timeout):
                self._keep()
            unsafe = [queued for queued in self._queue if not queued.kept]
            if unsafe:
                logger.error("neither with the backend nor on disk: %s; a kill would lose them", _words(unsafe))
            return self.kept()

    def kept(self) -> list[int]:
        """Return the windows that are in the backlog, oldest first."""
        with self._changed:
            return [queued.index for queued in self._queue if queued.kept]

    def close(self, timeout: float) -> bool:
        """Deliver what is left, within bounds, and end the thread.

        Args:
            timeout: Seconds to wait for the backend, at most. What is left then is kept on disk and named.

        Returns:
            Whether the thread ended; False if it hangs inside the backend.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._queue, timeout)
            self._stop = True
            self._changed.notify_all()
        self._thread.join(max(0.1, deadline - time.monotonic()))
        with self._changed:
            self._keep()
            self.report.undelivered = sum(queued.contents.records for queued in self._queue)
            if self._queue:
                kept = all(queued.kept for queued in self._queue)
                fate = f"kept in {self._backlog.path} for the next process that resumes this run" if kept else "LOST"
                logger.error("not delivered: %s; %s", _words(self._queue), fate)
            ended = not self._thread.is_alive()
        if ended:
            self._backlog.close()
        return ended

    def join(self) -> None:
        """Wait until the thread has ended, however long the backend hangs."""
        self._thread.join()

    def _is_safe(self) -> bool:
        return all(queued.kept for queued in self._queue)

    def _hangs(self) -> bool:
        return self._called_at is not None and time.monotonic() - self._called_at > self._patience

    def _work(self) -> None:
        pause = _FIRST_RETRY_SECONDS
        while self._wait(pause):
            try:
                self._deliver()
            except BaseException as error:  # a backend may raise anything, and the thread must live on
                with self._changed:
                    self._called_at = None
                    self.report.failures += 1
                    self._go_down(repr(error))
                pause = min(2 * pause, _LAST_RETRY_SECONDS)
            else:
                pause = _FIRST_RETRY_SECONDS

    def _wait(self, pause: float) -> bool:
        with self._changed:
            if self._down_since is None:
                self._changed.wait_for(lambda: self._queue or self._stop)
            elif self._closing:
                self._changed.wait_for(lambda: self._stop, min(pause, _CLOSING_RETRY_SECONDS))
            else:
                self._changed.wait_for(lambda: self._closing, pause)
            return not self._stop

    def _deliver(self) -> None:
        """Deliver the first window: all its records, then the flush that makes them durable."""
        with self._changed:
            if not self._queue:
                return
            head = self._queue[0]
        if head.records is None:
            head.records = self._backlog.get(head.index)
        while head.accepted < len(head.records):
            if self._stop:
                return
            try:
                self._call(self._run.write, self._rest(head, head.records))
            except Exception as error:
                if head.accepted == len(head.records):
                    raise
                if isinstance(error, (TypeError, ValueError)):
                    self._refuse(head, error)
                else:
                    record = head.records[head.accepted]
                    self._find_witness(head, head.records, error)
                    self._insist(head, record, error)
            else:
                if head.accepted < len(head.records) and not self._stop:
                    raise RuntimeError("`write` returned before it had asked for all points; consume its argument")
        self._call(self._run.flush)
        self._forget(head)

    def _rest(self, head: _Queued, records: list[Record]) -> Iterator[Record]:
        """Yield what is left of a window; a record is accepted once the next is asked for."""
        while head.accepted < len(records) and not self._stop:
            self._called_at = time.monotonic()
            yield records[head.accepted]
            head.accepted += 1

    def _refuse(self, head: _Queued, error: Exception) -> None:
        assert head.records is not None
        record = head.records.pop(head.accepted)
        self.report.failures += 1
        self.report.refused[record.name] += 1
        logger.error("the backend refused %s at step %d: %r", record.name, record.step, error)

    def _find_witness(self, head: _Queued, records: list[Record], error: Exception) -> None:
        """Have the backend accept another record than the one it raised on, or give the error back: it is down.

        The other one is of the same step, because steps never go back: one that is still to be written, which then
        comes first, or the last one that was, once more with the same value.
        """
        step = records[head.accepted].step
        for position in range(head.accepted + 1, min(head.accepted + 1 + _WITNESSES, len(records))):
            witness = records[position]
            if witness.step == step and not self._stop and self._takes(witness):
                records.insert(head.accepted, records.pop(position))
                head.accepted += 1
                return
        last = records[head.accepted - 1] if head.accepted else None
        if last is None or last.step != step or not self._takes(last):
            raise error

    def _insist(self, head: _Queued, record: Record, error: Exception) -> None:
        for _ in range(_ATTEMPTS - 1):
            self.report.failures += 1
            try:
                self._write(record)
            except Exception as again:
                error = again
            else:
                head.accepted += 1
                return
        self._refuse(head, error)

    def _takes(self, record: Record) -> bool:
        try:
            self._write(record)
        except Exception:
            return False
        return True

    def _write(self, record: Record) -> None:
        self._call(self._run.write, [record])

    def _call(self, method: Callable[..., None], *arguments: object) -> None:
        self._called_at = time.monotonic()
        method(*arguments)
        self._called_at = None

    def _forget(self, head: _Queued) -> None:
        with self._changed:
            if head in self._queue:  # unless the backlog has dropped it meanwhile
                if head.kept:
                    self._backlog.remove(head.index)
                self._queue.remove(head)
                self.report.delivered += head.accepted
            if self._down_since is not None:
                seconds, self._down_since = time.monotonic() - self._down_since, None
                logger.warning("the backend is back after %.1f s; still queued: %s", seconds, _words(self._queue))
            self._changed.notify_all()

    def _go_down(self, cause: str) -> None:
        if self._down_since is None:
            self._down_since = time.monotonic()
            logger.error(
                "the backend failed: %s; training goes on, these and what follows are kept in %s and tried again: %s",
                cause,
                self._backlog.path,
                _words(self._queue),
            )
        self._keep()
        self._changed.notify_all()

    def _keep(self) -> None:
        """Put what is queued on disk, and out of memory but for the window that is being delivered."""
        for queued in [queued for queued in self._queue if not queued.kept]:
            assert queued.records is not None
            try:
                dropped = self._backlog.put(queued.index, queued.records, queued.contents)
            except Exception as error:  # a full disk must not end the thread; memory still holds it
                if not self._keeping_failed:
                    logger.error("the backlog cannot be written, its windows stay in memory: %r", error)
                self._keeping_failed = True
                return
            self._keeping_failed = False
            queued.kept = True
            if queued is not self._queue[0]:
                queued.records = None
            self._drop(set(dropped))

    def _drop(self, windows: set[int]) -> None:
        lost = [queued for queued in self._queue if queued.index in windows]
        if lost:
            self._queue = deque(queued for queued in self._queue if queued.index not in windows)
            self.report.dropped += sum(queued.contents.records for queued in lost)
            logger.error("the backlog is full, dropped: %s; raise accumulator.backlog_bytes", _words(lost))


def _words(windows: Iterable[_Queued]) -> str:
    contents = [queued.contents for queued in windows]
    if not contents:
        return "nothing"
    names = sorted({name for window in contents for name in window.names})
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more series" if len(names) > 10 else "")
    count = sum(window.records for window in contents)
    return f"{count} records of steps {contents[0].first} to {contents[-1].last} ({shown})"
