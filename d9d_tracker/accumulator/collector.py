"""The thread between the device and the backend: waits for copies, finishes values, passes records on."""

import logging
import queue
import threading
from collections import deque

from .distributed.node import Node
from .fanout import AnyDelivery
from .finish import records
from .host_window import HostWindow, Tail
from .scalars import COUNT
from .window import Window

logger = logging.getLogger("d9d_tracker")

_MOST_QUEUED_BYTES = 256 * 2**20


class Collector:
    """Turns windows into records, in order, off the training thread.

    Args:
        delivery: Where the records go.
        outbox: Where the buffers put the windows that were swapped.
        tail: What an earlier life of the run wrote for its last, unfinished step.
        node: This rank among those that share the run; None if there are no others.

    Attributes:
        tail: What was written for the last, unfinished step; steady after ``drain``.
        has_merged: Whether some point of a scalar series is made of several values; steady after ``drain``.
    """

    def __init__(
        self,
        delivery: AnyDelivery,
        outbox: deque[Window],
        tail: Tail | None,
        node: Node | None = None,
    ):
        self.tail = tail
        self.has_merged = False
        self._node = node
        self._delivery = delivery
        self._outbox = outbox
        self._newest = -1
        # SIGINT and SIGTERM may raise between any two lines of Python: of queue.Queue too, but not of this one, in C.
        self._windows: queue.SimpleQueue[Window | threading.Event | None] = queue.SimpleQueue()
        self._bytes_put = self._bytes_taken = 0
        self._thread = threading.Thread(target=self._work, name="d9d_tracker collector", daemon=True)
        self._thread.start()

    def put(self) -> None:
        """Queue the windows of the outbox, also those that a signal handler kept from being queued. Never waits."""
        while self._outbox:
            self._bytes_put += self._outbox[0].packed.nbytes
            self._windows.put(self._outbox[0])
            self._outbox.popleft()

    def drain(self) -> None:
        """Wait until every window of the outbox and of the queue has become records."""
        self.put()
        reached = threading.Event()
        self._windows.put(reached)
        reached.wait()

    def close(self) -> None:
        """End the thread, after what was put and what other ranks still send."""
        self._windows.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (item := self._windows.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            self._bytes_taken += item.packed.nbytes
            try:
                self._collect(item)
            except Exception:  # the thread must live on for the windows behind
                self._delivery.report.unread += 1
                logger.exception("window %d (steps %s) is lost", item.index, item.steps)
        if self._node is not None:
            self._finish(self._node)

    def _collect(self, window: Window) -> None:
        if window.index <= self._newest:  # put twice, because a signal handler raised in between
            return
        self._newest = window.index
        host = window.wait()
        self.has_merged = self.has_merged or bool((host.lanes[:, COUNT] > 1).any())
        if self._node is not None:
            host = self._node.reduce(host, not window.mid_step, self._piles_up)
        if host is not None:
            self._deliver(host)
            self.tail = Tail.of(host, self.tail) if window.mid_step else None

    def _deliver(self, host: HostWindow) -> None:
        if self.tail is not None:
            self.tail.merge_into(host)
        finished = records(host)
        if finished:
            # Of a step that the window before has written a part of, it must not be the one to take anything back.
            first = finished[0].step if self.tail is None else max(finished[0].step, self.tail.step + 1)
            self._delivery.put(host.index, finished, first)

    def _finish(self, node: Node) -> None:
        try:
            for host in node.finish():
                self._deliver(host)
        except Exception:
            logger.exception("what other ranks logged last is lost")
        finally:
            node.close()

    def _piles_up(self) -> bool:
        return self._bytes_put - self._bytes_taken > _MOST_QUEUED_BYTES
