"""From the bank to the backends: the thread that waits for copies, merges ranks, and passes points on, in order."""

import contextlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

from d9d_tracker.bank.buffers import Buffers
from d9d_tracker.bank.staging import Window
from d9d_tracker.delivery.bounded import bounded
from d9d_tracker.delivery.delivery import Delivery, close_all
from d9d_tracker.delivery.outbound import Call
from d9d_tracker.errors import TrackerValueError
from d9d_tracker.log import logger
from d9d_tracker.record import Record

from .assembly import Assembly, Finished, State

_GLANCE_SECONDS = 0.2
_REST_SECONDS = 0.3  # between two passes: each takes the interpreter from the training
_SETTLE_SECONDS = 1.0
_OTHERS_SECONDS = 3.0  # that a state waits for other ranks: what they have not merged by then, it holds


class Pipeline:
    """What lives from the opening of a run to its end: windows become points on a thread of its own.

    Backends are waited for ``timeout`` seconds; a rank that does not write has none.

    Attributes:
        assembly: Makes points of windows; steady after ``drain``.
        process: The process that opened the run: a forked child has none of its threads.
        report: What became of the records.
        latest: The points of the last window, where this process writes.
    """

    def __init__(self, buffers: Buffers, deliveries: Mapping[str, Delivery], assembly: Assembly, timeout: float):
        self.assembly = assembly
        self.process = os.getpid()
        self.report = assembly.report
        self.latest: Sequence[Record] = ()
        self._buffers = buffers
        self._deliveries = dict(deliveries)
        self._timeout = timeout
        self._pending: deque[Window] = deque()  # put, and not yet turned into points
        self._newest = -1  # of the windows that were taken from there
        self._calls: set[Call] = set()  # put, and not yet with their backends
        self._has_ended = self._abandoned = False
        self._put(assembly.resumed())
        # SIGINT and SIGTERM may raise between any two lines of Python: of queue.Queue too, but not of this one, in C.
        self._items: queue.SimpleQueue[Window | dict[str, Call] | threading.Event | None] = queue.SimpleQueue()
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._rests_until = 0.0
        buffers.is_awaited = lambda: bool(self._pending) or self.assembly.awaits_one
        self._thread = threading.Thread(target=self._work, name="d9d_tracker collector", daemon=True)
        self._thread.start()

    def send(self) -> None:
        """Take over the windows that were swapped, also those that a signal handler held up. Never waits."""
        outbox = self._buffers.outbox
        while outbox:
            # Another thread or a signal handler may send the same one meanwhile: twice is known by its index.
            with contextlib.suppress(IndexError, ValueError):
                window = outbox[0]
                self._pending.append(window)
                self._items.put(window)
                outbox.remove(window)
        if self._buffers.staging.is_short:
            self._asked.put(None)

    def _ask(self, item: "dict[str, Call] | threading.Event | None") -> None:
        """Have all that was put before taken at once, and then this."""
        self.send()
        self._items.put(item)
        self._asked.put(None)

    def drain(self, failed: bool = False) -> bool:
        """Wait ``flush_timeout`` at most until all that was swapped has become points; return whether it has."""
        timeout = min(_SETTLE_SECONDS, self._timeout) if failed else self._timeout
        if self._wait_until_read(timeout):
            return True
        ranks = hint = ""
        if self.assembly.ranks is not None:
            ranks = " or from other ranks"
            hint = ". Call set_step and flush alike on every rank: a window waits for theirs"
        logger.error("after %g s, still not read from the device%s: %s%s", timeout, ranks, self._words(), hint)
        return False

    def drain_for_state(self, failed: bool = False) -> bool:
        """Wait as ``drain``, but shortly for other ranks, whose part a state can lack; return whether to take one."""
        if self.assembly.ranks is None:
            return self.drain(failed)
        self._wait_until_read(min(_SETTLE_SECONDS if failed else _OTHERS_SECONDS, self._timeout))
        return True

    def _wait_until_read(self, timeout: float) -> bool:
        reached = threading.Event()
        self._ask(reached)
        deadline = time.monotonic() + timeout
        while not reached.wait(min(_GLANCE_SECONDS, max(0.0, deadline - time.monotonic()))):
            if time.monotonic() >= deadline or not self._thread.is_alive():  # which sets no event any more
                return False
        return True

    def flush(self) -> None:
        """Send the window as far as it got, and wait for the backends, ``flush_timeout`` seconds at most."""
        deadline = time.monotonic() + self._timeout
        self._buffers.close_window()
        self.drain()
        for delivery in self._deliveries.values():
            left = max(0.0, deadline - time.monotonic())
            bounded(left, False, delivery.flush, left)

    def settle(self) -> None:
        """Wait about a second until all that has left the device is with the backends; what is not is put on disk."""
        self.drain_for_state()
        deadline = time.monotonic() + min(_SETTLE_SECONDS, self._timeout)
        for delivery in self._deliveries.values():
            left = max(0.0, deadline - time.monotonic())
            bounded(left, [], delivery.settle, left)

    def kept(self, before: float = float("inf")) -> dict[str, list[int]]:
        """Return the windows in the backlogs that begin before a step, by the name of the backend."""
        found = {name: bounded(0, [], delivery.kept, before) for name, delivery in self._deliveries.items()}
        return {name: kept for name, kept in found.items() if kept}

    def call(
        self, name: str | None, action: Callable[..., object], arguments: Mapping[str, object]
    ) -> dict[str, Future[object]]:
        """Have backends do something behind the windows swapped before; return futures by their names."""
        if self._deliveries and name not in (None, *self._deliveries):
            known = ", ".join(map(repr, self._deliveries))
            raise TrackerValueError(f"backend(name={name!r}): this run has {known}; name one of these, or none for all")
        calls = {key: Call(action, arguments) for key in self._deliveries if name in (None, key)}
        self._calls |= {*calls.values()}
        self._ask(calls)
        if self._has_ended:  # meanwhile: nobody takes it any more
            self._cancel_calls()
        return dict(calls)

    def _cancel_calls(self) -> None:
        for call in [*self._calls]:
            call.cancel()

    def close(self, deadline: float, error: BaseException | None = None) -> None:
        """Send what is left until the deadline, deliver it and close the backends, each within ``flush_timeout``."""
        try:
            self._buffers.close_window(is_last=True)
            self.send()
            self._asked.put(None)
            self.report.without_slot = self._buffers.without_slot
            if self.report.without_slot:
                words = "%d values had no slot left and are lost; see above for the first"
                logger.error(words, self.report.without_slot)
        finally:
            self._end_thread(max(0.1, deadline - time.monotonic()), isinstance(error, Exception))
            close_all(self._deliveries.values(), self._timeout, error)
            self.assembly.nonfinite.close(min(_SETTLE_SECONDS, self._timeout))

    def abandon(self) -> None:
        """Leave at once, after a second interruption: what is in memory is put on disk."""
        close_all(self._deliveries.values(), 0, None)

    def _end_thread(self, timeout: float, failed: bool) -> None:
        if self.assembly.ranks is not None:
            timeout = self.assembly.ranks.leave(timeout, failed)
        self._ask(None)
        self._thread.join(timeout)
        self._has_ended = True
        self._cancel_calls()
        if self._thread.is_alive():
            self._abandoned = True
            unread = {window.index for window in self._pending}
            if unread:
                self.report.unread += len(unread)
                logger.error("lost, because not read in time: %s", self._words())

    def _words(self) -> str:
        windows = {window.index: window for window in list(self._pending)}
        if not windows:
            return "what other ranks still send" if self._thread.is_alive() else "nothing, but the collector has died"
        steps = [step for window in windows.values() for step in window.steps]
        return f"{len(windows)} windows of steps {min(steps)} to {max(steps)}"

    def _work(self) -> None:
        while self._pass():
            pass
        try:
            for finished in self.assembly.finish():
                self._put(finished)
        except Exception:
            logger.exception("what other ranks logged last is lost")

    def _pass(self) -> bool:
        """Take what there is; windows that come soon after the last pass wait for others. Returns whether to go on."""
        items = [self._items.get()]
        if isinstance(items[0], Window):
            with contextlib.suppress(queue.Empty):
                self._asked.get(timeout=max(0.0, self._rests_until - time.monotonic()))
        while not self._asked.empty():  # what was asked for before is among what is taken now
            self._asked.get()
        items += [self._items.get() for _ in range(self._items.qsize())]
        windows: list[Window] = []
        for item in items:
            if isinstance(item, Window):
                if item.index > self._newest:  # else it was put twice, because a signal handler raised in between
                    self._newest = item.index
                    windows.append(item)
                continue
            self._take(windows)
            windows = []
            if item is None:
                return False
            if isinstance(item, threading.Event):
                item.set()
                continue
            for name, call in item.items():
                self._deliveries[name].put_call(call)
                self._calls.discard(call)
        self._take(windows)
        self._rests_until = time.monotonic() + _REST_SECONDS
        return True

    def _take(self, windows: Sequence[Window]) -> None:
        while windows:
            group = self.assembly.group(windows)
            last, windows = group[-1].index, windows[len(group) :]
            try:
                self._put(self.assembly.take(group))
            except Exception:  # the thread must live on for the windows behind
                self.report.unread += len(group)
                logger.exception("windows %d to %d are lost", group[0].index, last)
            while self._pending and self._pending[0].index <= last:  # some may have been put twice
                self._pending.popleft()
            for window in group:
                if window.packed is not None:
                    self._buffers.staging.give_back(window.packed)

    def _put(self, finished: Finished | None) -> None:
        if finished is None or self._abandoned:
            return
        if finished.contents.records:
            self.latest = finished.points
        for delivery in self._deliveries.values():
            delivery.put(*finished)

    def state(self) -> State:
        """Return what a state has to hold of what has left the device; not while windows are swapped."""
        return self.assembly.state(list(self._pending))
