"""The thread between the device and the backends: waits for copies, finishes values, passes records on."""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from d9d_tracker.delivery.delivery import Delivery
from d9d_tracker.delivery.report import NonFinite, RunReport
from d9d_tracker.ranks.ranks import Ranks
from d9d_tracker.record import Record
from d9d_tracker_kernels import COUNT

from .buffers import Buffers
from .host_window import HostWindow, Tail
from .nonfinite import NonFiniteWatch, from_note, to_note
from .spread import completed, expand, of_spread
from .watch.promises import Promises
from .window import Window
from .window_points import points

logger = logging.getLogger("d9d_tracker")

_GLANCE_SECONDS = 0.2


class Collector:
    """Turns windows into records, in order, off the training thread.

    Args:
        deliveries: Where the records go; none on a rank that does not write.
        buffers: Whose outbox has the windows that were swapped.
        tail: What an earlier life of the run wrote for its last, unfinished step.
        ranks: The ranks that share the run; None if there are no others.
        rank: This process among them.
        report: Counts the windows that are lost.
        promises: What watches have promised.
        nonfinite: Tells what is not finite.

    Attributes:
        tail: What was written for the last, unfinished step; steady after ``drain``.
        has_merged: Whether some point of a scalar series is made of several values; steady after ``drain``.
        latest: The points of the last window, where this process writes.
    """

    def __init__(
        self,
        deliveries: Sequence[Delivery],
        buffers: Buffers,
        tail: Tail | None,
        ranks: Ranks | None,
        rank: int,
        report: RunReport,
        promises: Promises,
        nonfinite: NonFiniteWatch,
    ):
        self.tail = tail
        self.has_merged = False
        self.latest: Sequence[Record] = ()
        self._ranks = ranks
        self._rank = rank
        self._deliveries = deliveries
        self._outbox = buffers.outbox
        self._staging = buffers.staging
        self._report = report
        self._promises = promises
        self._nonfinite = nonfinite
        self._newest = -1
        self._pending: deque[Window] = deque()  # put, and not yet turned into records
        self._abandoned = False
        # SIGINT and SIGTERM may raise between any two lines of Python: of queue.Queue too, but not of this one, in C.
        self._windows: queue.SimpleQueue[Window | threading.Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="d9d_tracker collector", daemon=True)
        self._thread.start()

    def put(self) -> None:
        """Queue the windows of the outbox, also those that a signal handler kept from being queued. Never waits."""
        while self._outbox:
            self._pending.append(self._outbox[0])
            self._windows.put(self._outbox[0])
            self._outbox.popleft()

    def drain(self, timeout: float) -> bool:
        """Wait until every window of the outbox and of the queue has become records.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            Whether they have; if not, what is missing is said.
        """
        self.put()
        reached = threading.Event()
        self._windows.put(reached)
        if _wait(reached.is_set, self._thread, timeout, reached.wait):
            return True
        of_ranks = "" if self._ranks is None else " or from other ranks"
        hint = "" if self._ranks is None else ". Call set_step and flush alike on every rank: a window waits for theirs"
        logger.error("after %g s, still not read from the device%s: %s%s", timeout, of_ranks, self._words(), hint)
        return False

    def close(self, timeout: float, failed: bool = False) -> bool:
        """End the thread, after what was put and what other ranks still send.

        Args:
            timeout: Seconds to wait at most, but for other ranks. What was not read by then is lost, counted and named.
            failed: Whether the run ended by an error: then other ranks may wait for this one.

        Returns:
            Whether it ended.
        """
        if self._ranks is not None:
            timeout = self._ranks.leave(timeout, failed)
        self._windows.put(None)
        self._thread.join(timeout)
        if not self._thread.is_alive():
            return True
        self._abandoned = True
        unread = {window.index for window in self._pending}
        if unread:
            self._report.unread += len(unread)
            logger.error("lost, because not read in time: %s", self._words())
        return False

    def _words(self) -> str:
        windows = {window.index: window for window in list(self._pending)}
        if not windows:
            return "what other ranks still send" if self._thread.is_alive() else "nothing, but the collector has died"
        steps = [step for window in windows.values() for step in window.steps]
        return f"{len(windows)} windows of steps {min(steps)} to {max(steps)}"

    def _work(self) -> None:
        while (item := self._windows.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            try:
                self._collect(item)
            except Exception:  # the thread must live on for the windows behind
                self._report.unread += 1
                logger.exception("window %d (steps %s) is lost", item.index, item.steps)
            finally:
                if self._pending:
                    self._pending.popleft()
                if item.packed is not None:
                    self._staging.give_back(item.packed)
        if self._ranks is not None:
            self._finish(self._ranks)

    def _collect(self, window: Window) -> None:
        if window.index <= self._newest:  # put twice, because a signal handler raised in between
            window.packed = None
            return
        self._newest = window.index
        try:
            host = window.wait()
        except Exception as error:
            self._report.unread += 1
            logger.error("window %d (steps %s) is lost: %r", window.index, window.steps, error)
            host = window.without_values()  # the other ranks wait for this one's part
        self.has_merged = self.has_merged or bool((host.lanes[:, COUNT] > 1).any())
        self._promises.look(host)
        logged = completed(host, self.tail)
        host = expand(logged, self._rank)
        broken = self._nonfinite.look(host)
        if self._ranks is None:
            self._nonfinite.tell(broken, logging.WARNING)
        else:
            ended = window.unfinished is None
            host = self._ranks.reduce(host, ended, window.is_last, to_note(broken))
            self._tell(self._ranks, broken)
        if host is None:
            self._report.unread += self._ranks is not None and self._ranks.is_lost
        else:
            self._deliver(host, window.unfinished)
        self.tail = None if window.unfinished is None else self._tail_of(host, logged)

    def _tail_of(self, written: HostWindow | None, logged: HostWindow) -> Tail:
        """Keep what was written for the step that goes on; of series that are expanded, what this rank has logged."""
        tail = Tail.of(of_spread(logged, True), None)
        if written is not None:
            rest = Tail.of(of_spread(written, False), self.tail)
            tail = replace(rest, lanes=rest.lanes | tail.lanes)
        return tail

    def _tell(self, ranks: Ranks, broken: list[NonFinite]) -> None:
        """Tell what is not finite: rank 0 for all, another one for itself, which matters once the others are gone."""
        if self._rank == 0:
            broken = [one for _, note in ranks.take_notes() for one in from_note(note)]
        is_told_elsewhere = self._rank > 0 and not ranks.is_lost
        self._nonfinite.tell(broken, logging.INFO if is_told_elsewhere else logging.WARNING)

    def _deliver(self, host: HostWindow, unfinished: int | None) -> None:
        if self._abandoned:
            return
        if self.tail is not None:
            self.tail.merge_into(host)
        finished = points(host)
        if finished:
            self.latest = finished
        first = finished.first if finished else 0
        if self.tail is not None:
            # Of a step that the window before has written a part of, it must not be the one to take anything back.
            first = max(first, self.tail.step + 1)
        for delivery in self._deliveries:
            delivery.put(host.index, finished, first, unfinished)

    def _finish(self, ranks: Ranks) -> None:
        try:
            for host in ranks.finish():
                self._tell(ranks, [])
                self._deliver(host, None)
        except Exception:
            logger.exception("what other ranks logged last is lost")
        finally:
            ranks.close()


def _wait(is_done, thread: threading.Thread, timeout: float, wait) -> bool:
    """Wait in glances, because a thread that has died sets no event."""
    deadline = time.monotonic() + timeout
    while not is_done():
        left = deadline - time.monotonic()
        if left <= 0 or not thread.is_alive():
            return is_done()
        wait(min(left, _GLANCE_SECONDS))
    return True
