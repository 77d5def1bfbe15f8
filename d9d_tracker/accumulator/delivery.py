"""Handing records to a backend, in order, on a thread of its own, whatever the backend does."""

import logging
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field

from d9d_tracker.base import BaseTrackerRun
from d9d_tracker.record import Histogram, Record

from .backlog import Backlog

logger = logging.getLogger("d9d_tracker")

_FIRST_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 30.0
_ATTEMPTS = 5


@dataclass
class DeliveryReport:
    """What became of the records of a run.

    Attributes:
        delivered: Records that the backend has accepted and made durable.
        refused: Records that the backend raised on while it accepted others, by series name. They are lost.
        dropped: Records that no longer fitted into the backlog. They are lost.
        undelivered: Records that the backend had not accepted when the run closed.
        failures: How often the backend raised.
    """

    delivered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    dropped: int = 0
    undelivered: int = 0
    failures: int = 0


@dataclass(eq=False)
class _Pending:
    window: int
    record: Record
    attempts: int = 0


class Delivery:
    """A backend's queue and thread.

    A record that the backend raises on is tried again. If the backend accepts another record of the same step
    meanwhile, the record itself is at fault: after five attempts (at once for a ``TypeError`` or ``ValueError``) it is
    refused, named and counted. If it does not, the backend is down: everything waits, in memory and in the backlog on
    disk, and is tried again with growing pauses.

    Args:
        run: The backend's run; used from this object's thread only.
        backlog: Where windows are kept while the backend is down. What an earlier process left there goes first.
    """

    def __init__(self, run: BaseTrackerRun, backlog: Backlog):
        self.report = DeliveryReport()
        self._run = run
        self._backlog = backlog
        self._changed = threading.Condition()
        self._pending: deque[_Pending] = deque()
        self._written: deque[_Pending] = deque()  # accepted by the backend, not yet flushed
        self._kept: set[int] = set()  # windows that are in the backlog
        self._down_since: float | None = None
        self._closing = False
        self._stop = False
        self._thread = threading.Thread(target=self._work, name="d9d_tracker delivery", daemon=True)
        for index, records in backlog.windows():
            self._kept.add(index)
            self._pending.extend(_Pending(index, record) for record in records)
        self._thread.start()

    def put(self, window: int, records: list[Record]) -> None:
        """Queue the records of a window. Never waits for the backend.

        Args:
            window: Index of the window.
            records: Its records, in the order of their steps.
        """
        with self._changed:
            self._pending.extend(_Pending(window, record) for record in records)
            if self._down_since is not None:
                self._keep({window})
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Wait until the backend has accepted everything that was put.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            Whether it has.
        """
        with self._changed:
            return self._changed.wait_for(lambda: not self._pending and not self._written, timeout)

    def settle(self, timeout: float) -> bool:
        """Wait until everything that was put is safe: accepted by the backend, or else in the backlog on disk.

        Args:
            timeout: Seconds to wait for the backend, at most.

        Returns:
            Whether it is.
        """
        with self._changed:
            self._changed.wait_for(self._is_safe, timeout)
            if not self._is_safe():
                self._keep({pending.window for pending in (*self._written, *self._pending)} - self._kept)
            return self._is_safe()

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
            self._changed.wait_for(lambda: not self._pending and not self._written, timeout)
            self._stop = True
            self._changed.notify_all()
        self._thread.join(max(0.1, deadline - time.monotonic()))
        with self._changed:
            left = [*self._written, *self._pending]
            self._keep({pending.window for pending in left} - self._kept)
        self.report.undelivered = len(left)
        if left:
            logger.error(
                "%d records were not delivered (%s); they are kept in %s and delivered by the next process that "
                "resumes this run",
                len(left),
                _names(left),
                self._backlog.path,
            )
        ended = not self._thread.is_alive()
        if ended:
            self._backlog.close()
        return ended

    def _is_safe(self) -> bool:
        return all(pending.window in self._kept for pending in (*self._written, *self._pending))

    def _work(self) -> None:
        pause = _FIRST_RETRY_SECONDS
        while True:
            with self._changed:
                if self._down_since is None:
                    self._changed.wait_for(lambda: self._pending or self._written or self._stop)
                else:
                    self._changed.wait_for(lambda: self._stop, min(pause, 1.0) if self._closing else pause)
                if self._stop:
                    return
            try:
                self._deliver()
            except Exception as error:  # a backend may raise anything, and the thread must live on
                self._fail(error)
                pause = min(2 * pause, _LAST_RETRY_SECONDS)
            else:
                pause = _FIRST_RETRY_SECONDS
                self._recover()

    def _deliver(self) -> None:
        while self._pending and not self._stop:
            head = self._pending[0]
            try:
                self._write(head)
            except Exception as error:
                self._handle(head, error)
            else:
                self._accept(head)
            if not self._pending or self._pending[0].window != head.window:
                self._flush()
        if self._written:
            self._flush()

    def _handle(self, head: _Pending, error: Exception) -> None:
        if not isinstance(error, TypeError | ValueError):
            with self._changed:
                behind = self._pending[1] if len(self._pending) > 1 else None
            if behind is None or behind.record.step != head.record.step:
                raise error
            try:
                self._write(behind)
            except Exception:  # the record behind fails as well: the backend is down
                raise error from None
            self._accept(behind)
            head.attempts += 1
            self.report.failures += 1
            if head.attempts < _ATTEMPTS:
                return
        self._take(head)
        self.report.refused[head.record.name] += 1
        logger.error("the backend refused %s at step %d: %r", head.record.name, head.record.step, error)

    def _take(self, pending: _Pending) -> None:
        with self._changed:
            if pending in self._pending:  # unless the backlog has dropped it meanwhile
                self._pending.remove(pending)
            self._changed.notify_all()

    def _accept(self, pending: _Pending) -> None:
        self._take(pending)
        with self._changed:
            self._written.append(pending)

    def _write(self, pending: _Pending) -> None:
        record = pending.record
        self._run.set_step(record.step)
        if isinstance(record.value, Histogram):
            self._run.histogram(record.name, record.value, dict(record.context))
        else:
            self._run.scalar(record.name, record.value, dict(record.context))

    def _flush(self) -> None:
        self._run.flush()
        with self._changed:
            done = {pending.window for pending in self._written} - {pending.window for pending in self._pending}
            self.report.delivered += len(self._written)
            self._written.clear()
            for window in done & self._kept:
                self._backlog.remove(window)
            self._kept -= done
            self._changed.notify_all()

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self.report.failures += 1
            if self._down_since is None:
                self._down_since = time.monotonic()
                logger.error("the backend failed: %r; training goes on, what is logged is kept and tried again", error)
            self._keep({pending.window for pending in (*self._written, *self._pending)} - self._kept)
            self._changed.notify_all()

    def _recover(self) -> None:
        with self._changed:
            if self._down_since is not None:
                seconds = time.monotonic() - self._down_since
                self._down_since = None
                logger.warning("the backend is back after %.1f s; everything kept was delivered", seconds)

    def _keep(self, windows: set[int]) -> None:
        for window in sorted(windows):
            kept = [item.record for item in (*self._written, *self._pending) if item.window == window]
            try:
                dropped = self._backlog.put(window, kept)
            except Exception as error:  # a full disk must not end the thread; memory still holds it
                logger.error("%d records could not be kept on disk, only in memory: %r", len(kept), error)
                return
            self._kept.add(window)
            for index, count in dropped:
                self._drop(index, count)

    def _drop(self, window: int, count: int) -> None:
        lost = [pending for pending in self._pending if pending.window == window]
        self._pending = deque(pending for pending in self._pending if pending.window != window)
        self._kept.discard(window)
        self.report.dropped += count
        logger.error("the backlog is full: %d records of window %d dropped (%s)", count, window, _names(lost))


def _names(pending: list[_Pending]) -> str:
    steps = [item.record.step for item in pending]
    names = sorted({item.record.name for item in pending})
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"steps {min(steps)} to {max(steps)}: {shown}" if steps else "none left in memory"
