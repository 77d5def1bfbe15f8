"""The thread between the device and the backend: waits for copies, finishes values, passes records on."""

import logging
import queue
import threading

from .delivery import Delivery
from .finish import records
from .window import Tail, Window

logger = logging.getLogger("d9d_tracker")


class Collector:
    """Turns windows into records, in order, off the training thread.

    Args:
        delivery: Where the records go.
        tail: What an earlier life of the run wrote for its last, unfinished step.
    """

    def __init__(self, delivery: Delivery, tail: Tail | None):
        self.tail = tail
        self._delivery = delivery
        self._windows: queue.Queue[tuple[Window, bool] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="d9d_tracker collector", daemon=True)
        self._thread.start()

    def put(self, window: Window, mid_step: bool) -> None:
        """Queue a window. Never waits.

        Args:
            window: The window, on its way to the host.
            mid_step: Whether more may be logged for its last step.
        """
        self._windows.put((window, mid_step))

    def drain(self) -> None:
        """Wait until every window that was put has become records."""
        self._windows.join()

    def close(self) -> None:
        """End the thread, after what was put."""
        self._windows.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (item := self._windows.get()) is not None:
            window, mid_step = item
            try:
                self._collect(window, mid_step)
            except Exception:  # the thread must live on for the windows behind
                logger.exception("window %d (steps %s) is lost", window.index, window.steps)
            finally:
                self._windows.task_done()
        self._windows.task_done()

    def _collect(self, window: Window, mid_step: bool) -> None:
        host = window.wait()
        if self.tail is not None:
            self.tail.merge_into(host)
        finished = records(host)
        if finished:
            self._delivery.put(host.index, finished)
        self.tail = Tail.of(host, self.tail) if mid_step else None
