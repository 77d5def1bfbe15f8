"""One backend's thread: it owns the backend from open to close, and hands it records in order, whatever it does."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager

from d9d_tracker.base import BaseTrackerRun
from d9d_tracker.record import Record

from .backlog import Backlog
from .held_step import HeldStep
from .report import DeliveryReport
from .window_queue import MEMORY_BYTES, Queued, WindowQueue, in_words
from .write_window import write_window

logger = logging.getLogger("d9d_tracker")

OPEN_SECONDS = 30.0  # for a server that must be asked first, or a database that must be made
_FIRST_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 30.0
_CLOSING_RETRY_SECONDS = 1.0
# What a wrong configuration or another writer raises on opening; anything else means that the backend is down.
FINAL_ERRORS = (ImportError, RuntimeError, TypeError, ValueError)


class Delivery:
    """A backend's queue and thread.

    The thread opens the backend, delivers, and closes it; nobody else calls it. A backend that cannot be opened, raises
    or does not return is down: everything waits in the backlog on disk, and is tried again with growing pauses. So does
    what a backend is too slow for, beyond a bound in memory.

    Args:
        name: What the backend is called in messages.
        open_backend: Returns the context manager that opens the backend's run.
        backlog: Where windows are kept while the backend is down. What an earlier process left there goes first.
        patience: Seconds that a call of the backend may take before it counts as hanging.
        rewind_to: Step from which on the backend must hold nothing, for a run that is gone on with.
        amends: Whether the backend can take more values of a step that it was given before. If not, a step that has
            not ended is held back.

    Attributes:
        report: What became of the records.
        opened: Done when the backend was opened; has the exception if the first attempt failed.
    """

    def __init__(
        self,
        name: str,
        open_backend: Callable[[], AbstractContextManager[BaseTrackerRun]],
        backlog: Backlog,
        patience: float,
        *,
        rewind_to: int | None = None,
        amends: bool = True,
    ):
        self.name = name
        self.report = DeliveryReport()
        self.opened: Future[None] = Future()
        self.backlog = backlog
        self._open_backend = open_backend
        self._context: AbstractContextManager[BaseTrackerRun] | None = None
        self._entered: BaseTrackerRun | None = None
        self._run: BaseTrackerRun | None = None  # once it is rewound as well
        self._patience = patience
        self._rewind_to = rewind_to
        self._changed = threading.Condition()
        if rewind_to is not None:
            backlog.forget_from(rewind_to)
        self._queue = WindowQueue(backlog, self.report)
        if self._queue and rewind_to is not None:
            # A kill may have come between the delivery of a kept window and its removal from the backlog.
            self._rewind_to = self._queue.head.contents.first
        self._held = None if amends else HeldStep()
        self._calls: deque[tuple[Future[object], Callable[[BaseTrackerRun], object]]] = deque()
        self._is_slow = False
        self._down_since: float | None = None
        self._called_at: float | None = time.monotonic()  # since when the thread has been inside the backend
        self._closing = False
        self._stop = False
        self._leaving = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=f"d9d_tracker delivery {name}", daemon=True)
        self._thread.start()

    def put(self, window: int, records: Sequence[Record], first: int, unfinished: int | None = None) -> None:
        """Queue the records of a window. Never waits for the backend.

        Args:
            window: Index of the window.
            records: Its records, in the order of their steps.
            first: The first step that this window writes and no earlier one does.
            unfinished: The last step, if more may be logged for it.
        """
        with self._changed:
            if self._held is not None:
                records = self._held.pass_on(records, unfinished)
            if not records:
                return
            self._queue.append(window, records, first)
            if self._down_since is None and self._hangs():
                self.report.failures += 1
                self._go_down(f"it has not returned from a call for {self._patience:g} s")
            if self._down_since is not None:
                self._queue.keep()
            elif self._queue.memory > MEMORY_BYTES:
                self._spill()
            self._changed.notify_all()

    def call(self, action: Callable[[BaseTrackerRun], object]) -> Future[object]:
        """Have the backend's thread do something with the backend's run, between two windows.

        Args:
            action: Gets the backend's run. What it raises is the future's.
        """
        future: Future[object] = Future()
        with self._changed:
            self._calls.append((future, action))
            self._changed.notify_all()
        return future

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
                logger.error("flush: not with the backend after %g s, still queued: %s", timeout, in_words(self._queue))
            if self._held:
                logger.info(
                    "flush: %d values of step %d wait for its end, because %s cannot amend a step",
                    len(self._held),
                    self._held.step,
                    self.name,
                )
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
                self._queue.keep()
            unsafe = [queued for queued in self._queue if not queued.kept]
            if unsafe:
                logger.error("neither with the backend nor on disk: %s; a kill would lose them", in_words(unsafe))
            return self.kept()

    def kept(self) -> list[int]:
        """Return the windows that are in the backlog, oldest first."""
        with self._changed:
            return [queued.index for queued in self._queue if queued.kept]

    def begin_close(self, error: BaseException | None = None) -> None:
        """Have the backend closed once everything is delivered. Does not wait.

        Args:
            error: What ended the run, if it failed.
        """
        with self._changed:
            self._closing, self._error = True, error
            self._changed.notify_all()

    def close(self, timeout: float, error: BaseException | None = None) -> bool:
        """Deliver what is left, close the backend and end the thread, within bounds.

        Args:
            timeout: Seconds to wait for what is left, at most, and as many again for the backend to close. What is left
                then is kept on disk and named.
            error: What ended the run, if it failed.

        Returns:
            Whether the thread ended; False if it hangs inside the backend, which it closes when it stops hanging.
        """
        self.begin_close(error or self._error)
        deadline = time.monotonic() + timeout
        with self._changed:
            self._changed.wait_for(lambda: not self._queue and not self._calls, timeout)
            self._stop = True
            self._changed.notify_all()
        self._thread.join(max(0.1, deadline - time.monotonic()))
        with self._changed:
            self._queue.keep()
            self.report.undelivered = sum(queued.contents.records for queued in self._queue)
            if self.report.dropped:
                logger.error("%s: %d records in all no longer fitted into the backlog", self.name, self.report.dropped)
            if self._queue:
                kept = all(queued.kept for queued in self._queue)
                fate = f"kept in {self.backlog.path} for the next process that resumes this run" if kept else "LOST"
                logger.error("not delivered: %s; %s", in_words(self._queue), fate)
        if self._leaving:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def join(self) -> None:
        """Wait until the thread has ended, however long the backend hangs."""
        self._thread.join()

    def _is_safe(self) -> bool:
        return all(queued.kept for queued in self._queue)

    def _hangs(self) -> bool:
        patience = self._patience if self._run is not None else max(self._patience, OPEN_SECONDS)
        return self._called_at is not None and time.monotonic() - self._called_at > patience

    def _work(self) -> None:
        pause = _FIRST_RETRY_SECONDS
        try:
            while self._wait(pause):
                try:
                    if self._run is None:
                        self._open()
                    self._answer_calls()
                    self._deliver()
                except BaseException as error:  # a backend may raise anything, and the thread must live on
                    if self._fails_to_open(error):
                        return
                    pause = min(2 * pause, _LAST_RETRY_SECONDS)
                else:
                    pause = _FIRST_RETRY_SECONDS
        finally:
            self._leave()

    def _fails_to_open(self, error: BaseException) -> bool:
        """Note a failure; return whether it is one of opening for the first time that trying again does not mend."""
        first_opening = not self.opened.done()
        is_final = first_opening and isinstance(error, FINAL_ERRORS)
        with self._changed:
            self._called_at = None
            self.report.failures += 1
            if is_final:
                self._error = self._error or error
            else:
                self._go_down(repr(error))
        if first_opening:
            self.opened.set_exception(error)
        return is_final

    def _open(self) -> None:
        """Open the backend and take back what the loaded state does not hold; after a failure, go on where it was."""
        self._called_at = time.monotonic()
        if self._context is None:
            context = self._open_backend()
            self._entered = context.__enter__()
            self._context = context
        assert self._entered is not None
        if self._rewind_to is not None:
            self._entered.rewind(self._rewind_to)
        self._run, self._called_at = self._entered, None
        if not self.opened.done():
            self.opened.set_result(None)
        if self._down_since is not None:
            self._come_back()

    def _wait(self, pause: float) -> bool:
        with self._changed:
            if self._run is None and not self.opened.done():
                return not self._stop
            if self._down_since is None:
                self._changed.wait_for(lambda: self._queue or self._calls or self._stop)
            elif self._closing:
                self._changed.wait_for(lambda: self._stop, min(pause, _CLOSING_RETRY_SECONDS))
            else:
                self._changed.wait_for(lambda: self._closing, pause)
            return not self._stop

    def _answer_calls(self) -> None:
        while self._calls and not self._stop:
            future, action = self._calls[0]
            try:
                result = self.call_backend(action, self._run)
            except Exception as error:
                self._called_at = None
                future.set_exception(error)
            else:
                future.set_result(result)
            with self._changed:
                self._calls.popleft()
                self._changed.notify_all()

    def _deliver(self) -> None:
        """Deliver the first window: all its records, then the flush that makes them durable."""
        with self._changed:
            if not self._queue:
                if self._down_since is not None:
                    self._come_back()
                return
            head = self._queue.head
        assert self._run is not None
        if head.records is None:
            head.records = self.backlog.get(head.index)
        write_window(self._run, head, self, self.report)
        if self.stops:
            return
        self.call_backend(self._run.flush)
        self._forget(head)

    @property
    def stops(self) -> bool:
        """Whether the thread is to leave."""
        return self._stop

    def enter(self) -> None:
        """Note that the thread is inside the backend from now on."""
        self._called_at = time.monotonic()

    def call_backend(self, method: Callable[..., object], *arguments: object) -> object:
        """Call the backend, on its thread."""
        self.enter()
        result = method(*arguments)
        self._called_at = None
        return result

    def _forget(self, head: Queued) -> None:
        with self._changed:
            self._queue.remove(head)
            if self._down_since is not None:
                self._come_back()
            self._is_slow = self._is_slow and bool(self._queue)
            self._changed.notify_all()

    def _go_down(self, cause: str) -> None:
        if self._down_since is None:
            self._down_since = time.monotonic()
            logger.error(
                "the backend failed: %s (%s); training goes on, these and what follows are kept in %s and tried again: "
                "%s",
                cause,
                self.name,
                self.backlog.path,
                in_words(self._queue),
            )
        self._queue.keep()
        self._changed.notify_all()

    def _come_back(self) -> None:
        assert self._down_since is not None
        seconds, self._down_since = time.monotonic() - self._down_since, None
        logger.warning(
            "the backend is back after %.1f s (%s); still queued: %s", seconds, self.name, in_words(self._queue)
        )

    def _spill(self) -> None:
        if not self._is_slow:
            self._is_slow = True
            logger.warning(
                "%s is slower than the training: what it has not taken waits in %s, now %s",
                self.name,
                self.backlog.path,
                in_words(self._queue),
            )
        self._queue.keep()

    def _leave(self) -> None:
        """Close the backend, as the last thing that the thread does."""
        with self._changed:
            self._leaving = True
            self._queue.keep()
        if not self.opened.done():
            self.opened.set_exception(RuntimeError(f"{self.name} was closed before it was open"))
        for future, _ in self._calls:
            future.cancel()
        self._called_at = time.monotonic()
        self._leave_backend()
        self._called_at = None
        self.backlog.close()

    def _leave_backend(self) -> None:
        context, error, self._context = self._context, self._error, None
        if context is None:
            return
        try:
            context.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
        except BaseException as closing_error:
            if closing_error is not error:
                logger.error("the backend failed to close: %r (%s)", closing_error, self.name)
