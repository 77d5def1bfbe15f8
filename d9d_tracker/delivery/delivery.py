"""One backend's thread: it owns the backend from open to close, and hands it points in order, whatever it does."""

import threading
import time
from collections.abc import Collection
from concurrent.futures import Future

from d9d_tracker.log import logger
from d9d_tracker.points import TAKES_NOTHING_BACK, Contents, Points
from d9d_tracker.sink import Sink, SinkLostError

from .backlog import Backlog, DamagedError
from .bounded import bounded
from .held_step import HeldStep
from .outbound import MEMORY_BYTES, Call, Outbound, Queued, in_words
from .owned_sink import Opener, OwnedSink, StoppedError
from .report import DeliveryReport

OPEN_SECONDS = 30.0  # for a server that must be asked first, or a database that must be made
_FIRST_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 30.0
_CLOSING_RETRY_SECONDS = 1.0
_LEAVING_SECONDS = 0.5  # a thread that waits for a writer looks up five times a second
# What a wrong configuration or another writer raises on opening; anything else means that the backend is down.
FINAL_ERRORS = (ImportError, RuntimeError, TypeError, ValueError)


class Delivery:
    """A backend's queue and thread.

    The thread opens the backend, delivers, and closes it; nobody else calls it. A backend that cannot be opened, raises
    or does not return is down: everything waits in the backlog on disk, and is tried again with growing pauses. So does
    what a backend is too slow for, beyond a bound in memory.

    What an earlier process left in the backlog goes first. A call of the backend that takes longer than ``patience``
    seconds counts as hanging. From the step ``rewind_to`` on, the backend of a run that is gone on with must hold
    nothing. Of one that does not amend a step that it was given before, a step that has not ended is held back.

    Attributes:
        report: What became of the records.
        opened: Done when the backend was opened; has the exception if the first attempt failed.
        cause: What the backend raised last; None if it never did.
    """

    def __init__(
        self,
        name: str,
        open_backend: Opener,
        backlog: Backlog,
        patience: float,
        *,
        rewind_to: int | None = None,
        amends: bool = True,
    ):
        self.name = name
        self.report = DeliveryReport()
        self.opened: Future[None] = Future()
        self.cause: BaseException | None = None
        self.backlog = backlog
        self._patience = patience
        self._changed = threading.Condition()
        if rewind_to is not None:
            backlog.forget_from(rewind_to)
        self._queue = Outbound(backlog, self.report)
        if self._queue.windows and rewind_to is not None:
            # A kill may have come between the delivery of a kept window and its removal from the backlog.
            rewind_to = self._queue.windows[0].contents.first
        self._owned = OwnedSink(name, open_backend, self.report, rewind_to)
        self._held = None if amends else HeldStep()
        self._is_slow = False
        self._down_since: float | None = None
        self._goes_without = False  # the training has stopped to wait for the opening
        self._is_over = False  # the backend refused to be opened, or was closed: nothing is delivered any more
        self._is_asked_to_close = False
        self._is_closing = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=f"d9d_tracker delivery {name}", daemon=True)
        self._thread.start()

    def put(self, points: Points, contents: Contents, unfinished: int | None = None) -> None:
        """Queue the points of a window, whose last step may be unfinished. Never waits."""
        with self._changed:
            if self._held is not None:
                points, first = self._held.pass_on(points, contents.first, unfinished)
                contents = Contents.of(points, first)
            if not contents.records and not points.hparams:
                return
            self._queue.append(points, contents)
            patience = self._patience if self._owned.sink is not None else max(self._patience, OPEN_SECONDS)
            called_at = self._owned.called_at
            if self._down_since is None and called_at is not None and time.monotonic() - called_at > patience:
                self.report.failures += 1
                self._go_down(f"it has not returned from a call for {patience:g} s")
            if self._down_since is not None or self._is_over:
                self._queue.keep()
            elif self._queue.memory > MEMORY_BYTES:
                self._spill()
            self._changed.notify_all()

    def put_call(self, call: Call) -> None:
        """Queue a call: cancelled if the run is closed first, failed if the backend refused to be opened."""
        with self._changed:
            if self._is_over:
                self._end_call(call)
            else:
                self._queue.append_call(call)
                self._changed.notify_all()

    def wait_until_open(self, timeout: float) -> None:
        """Wait some seconds for the first attempt to open the backend; raise what trying again does not mend."""
        try:
            self.opened.result(timeout)
        except FINAL_ERRORS:
            raise
        except Exception:  # it is down, which was said, or has not answered yet
            with self._changed:
                self._goes_without = not self.opened.done()
            if self._goes_without:
                words = "%s has not opened the run for %g s: training goes on, what is logged is kept for it"
                logger.error(words, self.name, OPEN_SECONDS)

    def flush(self, timeout: float) -> bool:
        """Wait some seconds until the backend has accepted everything, say what it has not; return whether it has."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queue.items or self._is_over, timeout)
            if self._queue.items and self._is_over:
                logger.error("flush: not with the backend, %r; kept: %s", self.cause, self._words())
            elif self._queue.items:
                logger.error("flush: not with the backend after %g s, still queued: %s", timeout, self._words())
            if self._held:
                words = "flush: %d values of step %d wait for its end, because %s cannot amend a step"
                logger.info(words, len(self._held), self._held.step, self.name)
            return not self._queue.items

    def settle(self, timeout: float) -> list[int]:
        """Wait some seconds for the backend, and put on disk what it has not accepted; return these windows."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._queue.unsafe and not self._queue.calls, timeout):
                self._queue.keep()
            unsafe, calls = self._queue.unsafe, len(self._queue.calls)
            if unsafe or calls:
                words = "neither with the backend nor on disk: %s; a kill would lose them"
                logger.error(words, in_words(unsafe, calls))
            return self.kept()

    def kept(self, before: float = float("inf")) -> list[int]:
        """Return the windows in the backlog that begin before a step, oldest first."""
        with self._changed:
            return [one.number for one in self._queue.windows if one.kept and one.contents.first < before]

    def begin_close(self, error: BaseException | None = None) -> None:
        """Have the backend closed once everything is delivered, with what ended the run. Does not wait."""
        nothing = Points.of([])
        self.put(nothing, Contents.of(nothing, TAKES_NOTHING_BACK))  # no more comes of a step that is held back
        with self._changed:
            self._is_asked_to_close, self._error = True, error
            self._changed.notify_all()

    def close(self, timeout: float, error: BaseException | None = None) -> bool:
        """Deliver what is left, close the backend and end the thread; keep on disk and name what remains.

        Waits ``timeout`` seconds, and as many again for the backend to close. Returns whether the thread ended; False
        if it hangs inside the backend, which it closes when it stops hanging.
        """
        self.begin_close(error or self._error)
        deadline = time.monotonic() + timeout
        with self._changed:
            self._changed.wait_for(lambda: not self._queue.items or self._is_over, timeout)
            self._owned.is_stopped = True
            self._changed.notify_all()
        self._thread.join(max(_LEAVING_SECONDS, deadline - time.monotonic()))
        with self._changed:
            self._is_over = True
            self._queue.keep()
            self._end_calls()
            windows = self.count_left()
            if self.report.dropped:
                logger.error("%s: dropped from the backlog: %d records in all", self.name, self.report.dropped)
            if windows:
                kept = f"kept in {self.backlog.path} for the next process that resumes this run"
                logger.error("not delivered: %s; %s", in_words(windows), "LOST" if self._queue.unsafe else kept)
        if self._is_closing:
            self._thread.join(timeout)
        if self._thread.is_alive():
            return False
        self.backlog.close()  # which what came after the thread had left has opened once more
        return True

    def count_left(self) -> list[Queued]:
        """Count what the backend has not accepted as undelivered, and return it. Never waits."""
        windows = self._queue.windows
        self.report.undelivered = sum(queued.contents.records for queued in windows)
        return windows

    def _words(self) -> str:
        return in_words(self._queue.windows, len(self._queue.calls))

    def _work(self) -> None:
        pause = _FIRST_RETRY_SECONDS
        try:
            while self._wait(pause):
                try:
                    sink = self._owned.open() if self._owned.sink is None else self._owned.sink
                    if not self.opened.done():
                        self.opened.set_result(None)
                    self._do_next(sink)
                except StoppedError:
                    pass
                except BaseException as error:  # a backend may raise anything, and the thread must live on
                    if self._fails_to_open(error):
                        return
                    pause = min(2 * pause, _LAST_RETRY_SECONDS)
                else:
                    pause = _FIRST_RETRY_SECONDS
        finally:
            self._close_backend()

    def _fails_to_open(self, error: BaseException) -> bool:
        """Note a failure; return whether it is one of opening for the first time that trying again does not mend."""
        if isinstance(error, SinkLostError):
            self._lose_sink()
        first_opening = not self.opened.done()
        is_final = first_opening and isinstance(error, FINAL_ERRORS)
        with self._changed:
            self.cause = error
            self.report.failures += 1
            if is_final:
                self._error = self._error or error
                if self._goes_without:
                    words = (
                        "%s refuses to open the run: %r; training goes on, what is logged is kept in %s: mend the "
                        "cause, then `python -m d9d_tracker deliver`"
                    )
                    logger.error(words, self.name, error, self.backlog.path)
            else:
                self._go_down(repr(error))
        if first_opening:
            self.opened.set_exception(error)
        return is_final

    def _lose_sink(self) -> None:
        """Have the backend opened again, and given the window that it lost from its beginning."""
        self._owned.close_to_reopen(self._error)
        with self._changed:
            if self._queue.items and isinstance(head := self._queue.items[0], Queued):
                head.begin_again()
                first, after = head.contents.first, self._owned.rewind_to
                self._owned.rewind_to = first if after is None else min(first, after)

    def _wait(self, pause: float) -> bool:
        with self._changed:
            if self._owned.sink is None and not self.opened.done():
                return not self._owned.is_stopped
            if self._down_since is None:
                self._changed.wait_for(lambda: self._queue.items or self._owned.is_stopped)
            elif self._is_asked_to_close:
                self._changed.wait_for(lambda: self._owned.is_stopped, min(pause, _CLOSING_RETRY_SECONDS))
            else:
                self._changed.wait_for(lambda: self._is_asked_to_close or self._owned.is_stopped, pause)
            return not self._owned.is_stopped

    def _do_next(self, sink: Sink) -> None:
        with self._changed:
            item = self._queue.items[0] if self._queue.items else None
        if isinstance(item, Queued):
            try:
                points = item.points = self.backlog.get(item.number) if item.points is None else item.points
            except DamagedError as error:
                with self._changed:
                    if item in self._queue.windows:  # else it was dropped meanwhile
                        self.report.dropped += item.contents.records
                        words = "the backlog of %s is damaged, left out: %s; %s"
                        logger.error(words, self.name, in_words([item]), error)
            else:
                self._owned.deliver(sink, item, points)
        elif item is not None and not item.cancelled() and not sink.takes(item.action, item.arguments):
            self._owned.close_to_reopen(self._error)  # and open it where the action is
            return
        elif item is not None:
            self._owned.make_call(sink, item)
        with self._changed:
            if item is not None:
                self._queue.remove(item)
                self._is_slow = self._is_slow and bool(self._queue.items)
            if self._down_since is not None:
                seconds, self._down_since = time.monotonic() - self._down_since, None
                words = "the backend is back after %.1f s (%s); still queued: %s"
                logger.warning(words, seconds, self.name, self._words())
            self._changed.notify_all()

    def _go_down(self, cause: str) -> None:
        if self._down_since is None:
            self._down_since = time.monotonic()
            words = "the backend failed: %s (%s); training goes on, these and what follows are kept in %s and tried "
            logger.error(f"{words}again: %s", cause, self.name, self.backlog.path, self._words())
        self._queue.keep()
        self._changed.notify_all()

    def _spill(self) -> None:
        if not self._is_slow:
            self._is_slow = True
            words = "%s is slower than the training: what it has not taken waits in %s, now %s"
            logger.warning(words, self.name, self.backlog.path, self._words())
        self._queue.keep()

    def _close_backend(self) -> None:
        """Close the backend, as the last thing that the thread does."""
        with self._changed:
            self._is_closing = self._is_over = True
            self._queue.keep()
            self._end_calls()
            self._changed.notify_all()
        if not self.opened.done():
            self.opened.set_exception(RuntimeError(f"{self.name} was closed before it was open"))
        self._owned.close(self._error)
        self.backlog.close()

    def _end_calls(self) -> None:
        for call in self._queue.calls:
            self._queue.remove(call)
            self._end_call(call)

    def _end_call(self, call: Call) -> None:
        """End a call that will not be made: with the cause, if the backend refused to be opened."""
        if self._owned.sink is None and self.cause is not None:
            if call.set_running_or_notify_cancel():
                call.set_exception(self.cause)
        else:
            call.cancel()


def close_all(deliveries: Collection[Delivery], timeout: float, error: BaseException | None) -> None:
    """Deliver what is left and close the backends side by side, within some seconds; see ``Delivery.close``."""
    for delivery in deliveries:
        bounded(0, None, delivery.begin_close, error)
    deadline = time.monotonic() + timeout
    for delivery in deliveries:
        left = max(0.0, deadline - time.monotonic())
        if not bounded(2 * left, False, delivery.close, left, error):
            delivery.count_left()
            logger.error("%s hangs; it is left to close in the background", delivery.name)
