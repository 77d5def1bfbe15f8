"""From the bank to the backends: the thread that waits for copies, merges ranks, and passes points on, in order."""

import functools
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from d9d_tracker.bare_run import BareRun
from d9d_tracker.delivery.delivery import Delivery
from d9d_tracker.delivery.outbound import Call
from d9d_tracker.delivery.report import RunReport
from d9d_tracker.errors import TrackerValueError
from d9d_tracker.points import Points
from d9d_tracker.ranks.ranks import Ranks
from d9d_tracker.record import Record
from d9d_tracker_kernels import COUNT

from .buffers import Buffers
from .host_window import HostWindow, Tail
from .late import Late
from .moving import Logged, Moving
from .nonfinite import NonFiniteWatch
from .spread import completed, expand, merge_expanded, of_spread, since
from .watch.promises import Promises
from .window import Window
from .window_points import points

logger = logging.getLogger("d9d_tracker")

_GLANCE_SECONDS = 0.2
_SETTLE_SECONDS = 1.0
_OTHERS_SECONDS = 3.0  # that a state waits for other ranks: what they have not merged by then, it holds
_RECENT = 2  # windows that a rank saves though rank 0 has them, which may have saved its state before


@dataclass(frozen=True)
class State:
    """What a state holds of what has left the device; see ``Snapshot``."""

    tail: Tail | None
    late: Late
    expanded: HostWindow | None
    moving: Moving


@dataclass(frozen=True)
class _Reached:
    """How far the thread has come: the last window, and what was there when it was done."""

    index: int
    tail: Tail | None
    late: Late
    expanded: HostWindow | None
    earlier: HostWindow | None
    held: HostWindow | None
    taken: dict[int, int]
    recent: tuple[Logged, ...]


class Pipeline:
    """What lives from the opening of a run to its end: windows become points on a thread of its own.

    Args:
        buffers: Whose outbox has the windows that were swapped.
        deliveries: Where points go, by the name of the backend; none on a rank that does not write.
        report: What became of the records.
        ranks: The ranks that share the run; None if there are no others.
        rank: This process among them.
        nonfinite: Finds and tells what is not finite.
        tail: What an earlier life of the run wrote for its last, unfinished step.
        expanded: What other ranks of that life logged to series of ``scope="spread"``, if anything.
        earlier: What of that life was on its way to rank 0, or held back there.
        timeout: Seconds that the backends are waited for.

    Attributes:
        rank: This process among those that share the run.
        has_ranks: Whether there are others.
        process: The process that opened it: a forked child has none of its threads.
        report: What became of the records.
        promises: What watches have promised.
        tail: What was written for the last, unfinished step; steady after ``drain``.
        expanded: The same, until it has been sent; steady after ``drain``.
        late: What waits for its step to be reached, by other ranks too; steady after ``drain``.
        has_merged: Whether some point of a scalar series is made of several values; steady after ``drain``.
        latest: The points of the last window, where this process writes.
    """

    def __init__(
        self,
        buffers: Buffers,
        deliveries: Mapping[str, Delivery],
        report: RunReport,
        ranks: Ranks | None,
        rank: int,
        nonfinite: NonFiniteWatch,
        tail: Tail | None,
        expanded: HostWindow | None,
        earlier: HostWindow | None,
        timeout: float,
    ):
        self.rank = rank
        self.process = os.getpid()
        self.report = report
        self.promises = Promises()
        self.tail = tail
        self.expanded = expanded
        self.late = Late()
        self.has_merged = False
        self.latest: Sequence[Record] = ()
        self._buffers = buffers
        self._deliveries = dict(deliveries)
        self._ranks = ranks
        self.has_ranks = ranks is not None
        self._nonfinite = nonfinite
        self._timeout = timeout
        self._newest = -1
        self._earlier = earlier
        self._recent: tuple[Logged, ...] = ()
        if ranks is not None:
            report.missing = ranks.missing
        self._pending: deque[Window] = deque()  # put, and not yet turned into points
        self._calls: deque[Call] = deque()  # put, and not yet with their backends
        self._abandoned = False
        if tail is not None and deliveries:  # taken back with the rewind, and written again
            written = points(of_spread(tail.as_window(), False)).replaced(tail.late)
            self._put(written, tail.step, tail.step)
        self._reach(-1)
        # SIGINT and SIGTERM may raise between any two lines of Python: of queue.Queue too, but not of this one, in C.
        self._windows: queue.SimpleQueue[Window | dict[str, Call] | threading.Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="d9d_tracker collector", daemon=True)
        self._thread.start()

    def send(self) -> None:
        """Take over the windows that were swapped, also those that a signal handler held up. Never waits."""
        outbox = self._buffers.outbox
        while outbox:
            self._pending.append(outbox[0])
            self._windows.put(outbox[0])
            outbox.popleft()

    def drain(self, failed: bool = False) -> bool:
        """Wait until all that was swapped has become points, ``flush_timeout`` seconds at most.

        Args:
            failed: Whether the run ended by an error: then other ranks, which may wait for this one, are not waited
                for.

        Returns:
            Whether it has; if not, what is missing is said.
        """
        timeout = min(_SETTLE_SECONDS, self._timeout) if failed else self._timeout
        if self._wait_until_read(timeout):
            return True
        ranks = "" if self._ranks is None else " or from other ranks"
        hint = "" if self._ranks is None else ". Call set_step and flush alike on every rank: a window waits for theirs"
        logger.error("after %g s, still not read from the device%s: %s%s", timeout, ranks, self._words(), hint)
        return False

    def drain_for_state(self, failed: bool = False) -> bool:
        """Wait until what was swapped has become points; only shortly for other ranks, whose part a state can lack.

        Args:
            failed: See ``drain``.

        Returns:
            Whether a state can be taken.
        """
        if self._ranks is None:
            return self.drain(failed)
        self._wait_until_read(min(_SETTLE_SECONDS if failed else _OTHERS_SECONDS, self._timeout))
        return True

    def _wait_until_read(self, timeout: float) -> bool:
        self.send()
        reached = threading.Event()
        self._windows.put(reached)
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
            delivery.flush(max(0.0, deadline - time.monotonic()))

    def settle(self) -> None:
        """Wait until all that has left the device is safe: with the backends, or in their backlogs.

        A backend that is slow is waited for about a second; then what is queued for it is put on disk.
        """
        self.drain_for_state()
        deadline = time.monotonic() + min(_SETTLE_SECONDS, self._timeout)
        for delivery in self._deliveries.values():
            delivery.settle(max(0.0, deadline - time.monotonic()))

    def kept(self, before: float = float("inf")) -> dict[str, list[int]]:
        """Return the windows that are in the backlogs, by the name of the backend.

        Args:
            before: Only those that begin before this step.
        """
        return {name: kept for name, delivery in self._deliveries.items() if (kept := delivery.kept(before))}

    def call(self, name: str | None, action: Callable[[BareRun], object]) -> dict[str, Future[object]]:
        """Have backends' threads do something with the backends' runs, behind the windows that were swapped before.

        Args:
            name: The backend; all if None. One that this process does not write to gives nothing.
            action: Gets the backend's run. What it raises is the future's.

        Returns:
            Futures by the name of the backend, which may be cancelled; cancelled if the run is closed first.

        Raises:
            TrackerValueError: If this process writes, and to no backend of that name.
        """
        if self._deliveries and name not in (None, *self._deliveries):
            known = ", ".join(map(repr, self._deliveries))
            raise TrackerValueError(f"backend(name={name!r}): this run has {known}; name one of these, or none for all")
        self.send()
        calls = {key: Call(action) for key in self._deliveries if name in (None, key)}
        self._calls += calls.values()
        self._windows.put(calls)
        return dict(calls)

    def close(self, deadline: float, error: BaseException | None = None) -> None:
        """Send what is left; deliver it and close the backends, each within ``flush_timeout`` seconds.

        Args:
            deadline: When to give up what has not left the device, in seconds of ``time.monotonic``.
            error: What ended the run, if it failed.
        """
        try:
            self._buffers.close_window(is_last=True)
            self.send()
            self.report.without_slot = self._buffers.without_slot
            if self.report.without_slot:
                words = "%d values had no slot left and are lost; see above for the first"
                logger.error(words, self.report.without_slot)
        finally:
            self._end_thread(max(0.1, deadline - time.monotonic()), isinstance(error, Exception))
            self._close_deliveries(self._timeout, error)
            self._nonfinite.close(min(_SETTLE_SECONDS, self._timeout))

    def abandon(self) -> None:
        """Leave at once, after a second interruption: what is in memory is put on disk."""
        self._close_deliveries(0, None)

    def _end_thread(self, timeout: float, failed: bool) -> None:
        if self._ranks is not None:
            timeout = self._ranks.leave(timeout, failed)
        self._windows.put(None)
        self._thread.join(timeout)
        for call in list(self._calls):
            call.cancel()
        if self._thread.is_alive():
            self._abandoned = True
            unread = {window.index for window in self._pending}
            if unread:
                self.report.unread += len(unread)
                logger.error("lost, because not read in time: %s", self._words())

    def _close_deliveries(self, timeout: float, error: BaseException | None) -> None:
        for delivery in self._deliveries.values():
            delivery.begin_close(error)
        deadline = time.monotonic() + timeout
        for delivery in self._deliveries.values():
            if not delivery.close(max(0.0, deadline - time.monotonic()), error):
                logger.error("%s hangs; it is left to close in the background", delivery.name)

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
            if isinstance(item, dict):
                for name, call in item.items():
                    self._deliveries[name].put_call(call)
                    self._calls.popleft()
                continue
            try:
                self._collect(item)
            except Exception:  # the thread must live on for the windows behind
                self.report.unread += 1
                logger.exception("window %d (steps %s) is lost", item.index, item.steps)
            finally:
                if self._pending:
                    self._pending.popleft()
                if item.packed is not None:
                    self._buffers.staging.give_back(item.packed)
        if self._ranks is not None:
            self._finish(self._ranks)
        else:
            self._put_late()

    def _collect(self, window: Window) -> None:
        if window.index <= self._newest:  # put twice, because a signal handler raised in between
            window.packed = None
            return
        self._newest = window.index
        try:
            host = window.wait()
        except Exception as error:
            self.report.unread += 1
            logger.error("window %d (steps %s) is lost: %r", window.index, window.steps, error)
            host = window.without_values()  # the other ranks wait for this one's part
        self.has_merged = self.has_merged or bool((host.lanes[:, COUNT] > 1).any())
        self.promises.look(host)
        logged = completed(host, self.tail)
        host = expand(logged, self.rank)
        if self.expanded is not None:
            host = self._with_expanded(host, self.expanded, window.unfinished)
        if self._earlier is not None:
            host, self._earlier = replace(merge_expanded(self._earlier, host), index=host.index), None
        self._nonfinite.look(host)
        self.late.add(window.late.records, window.late.hparams)
        if self._ranks is None:
            self._nonfinite.tell()
        else:
            host = self._meet(self._ranks, host, window)
        late: list[Record] = []
        if host is None:
            self.report.unread += self._ranks is not None and self._ranks.is_lost
        else:
            late = self._deliver(host, window.unfinished)
        self.tail = None if window.unfinished is None else self._tail_of(host, logged, late)
        if self.rank > 0:
            parts = (logged.lanes.copy(), logged.counts.copy(), logged.moments.copy())
            copied = replace(logged, lanes=parts[0], counts=parts[1], moments=parts[2])
            self._recent = (*self._recent, Logged(self.rank, window.index, copied))[-_RECENT:]
        self._reach(window.index)

    def _reach(self, index: int) -> None:
        """Note how far the thread has come, at once, for whoever takes a state meanwhile."""
        late = Late(self.late.records[:], dict(self.late.hparams))
        held, taken = (None, {}) if self._ranks is None else (self._ranks.held, self._ranks.taken)
        self._reached = _Reached(index, self.tail, late, self.expanded, self._earlier, held, taken, self._recent)

    def state(self) -> State:
        """Return what a state has to hold of what has left the device; not while windows are swapped."""
        pending = {window.index: window for window in list(self._pending)}
        reached = self._reached
        windows, late = list(reached.recent), Late(reached.late.records[:], dict(reached.late.hparams))
        for window in pending.values():
            if window.index > reached.index and window.packed is not None:
                host = window.wait()
                parts = (host.lanes.copy(), host.counts.copy(), host.moments.copy())
                copied = replace(host, lanes=parts[0], counts=parts[1], moments=parts[2])
                tail = reached.tail if len(windows) == len(reached.recent) else None
                windows.append(Logged(self.rank, window.index, completed(copied, tail)))
                late.add(window.late.records, window.late.hparams)
        rows = [one for one in (reached.earlier, reached.held) if one is not None]
        held = functools.reduce(merge_expanded, rows) if rows else None
        return State(reached.tail, late, reached.expanded, Moving(windows, held, dict(reached.taken)))

    def _with_expanded(self, host: HostWindow, expanded: HostWindow, unfinished: int | None) -> HostWindow:
        """Add what ranks of an earlier life logged for this window, and keep it for a step that goes on."""
        if self._buffers.resolution == "window":  # there is one row
            expanded = replace(expanded, steps=host.steps)
        self.expanded = since(expanded, unfinished)
        return merge_expanded(host, expanded)

    def _meet(self, ranks: Ranks, host: HostWindow, window: Window) -> HostWindow | None:
        """Merge a window with those of the other ranks, and take what they say besides."""
        note = self._nonfinite.take_note()
        if self.rank > 0:
            note, self.late = _with_late(note, self.late), Late()
        elif note:
            note = _with_late(note, Late())
        merged = ranks.reduce(host, window.unfinished is None, window.is_last, note)
        self._hear(ranks)
        return merged

    def _hear(self, ranks: Ranks) -> None:
        others: list[Record] = []
        for _, note in ranks.take_notes():
            found, late = _without_late(note)
            self._nonfinite.hear(found)
            others += late
        self.late.records = [*others, *self.late.records]  # of one series and step, what rank 0 logs stands
        self._nonfinite.tell(is_told_elsewhere=self.rank > 0 and not ranks.is_lost)

    def _deliver(self, host: HostWindow, unfinished: int | None) -> list[Record]:
        """Hand a window to the backends; return what of it came late, and was not merged."""
        if self._abandoned:
            return []
        if self.tail is not None:
            self.tail.merge_into(host)
        finished = points(host)
        first = finished.first if finished else next(iter(host.steps), 0)
        if self.tail is not None:
            # Of a step that the window before has written a part of, it must not be the one to take anything back.
            first = max(first, self.tail.step + 1)
        late = self.late.take_until(host.steps[-1] if host.steps else float("inf"))
        finished = finished.replaced(late.records).with_hparams(late.hparams)
        if finished:
            self.latest = finished
        self._put(finished, first, unfinished)
        return late.records

    def _put(self, finished: Points, first: int, unfinished: int | None) -> None:
        for delivery in self._deliveries.values():
            delivery.put(finished, first, unfinished)

    def _put_late(self) -> None:
        """Hand over what waits for a step that the run has not reached."""
        if self.late and not self._abandoned:
            self._put(self.late.points(), max((record.step for record in self.late.records), default=0), None)

    def _tail_of(self, written: HostWindow | None, logged: HostWindow, late: list[Record]) -> Tail:
        """Keep what was written for the step that goes on; of series that are expanded, what this rank has logged."""
        tail = Tail.of(of_spread(logged, True), None)
        if written is not None:
            rest = Tail.of(of_spread(written, False), self.tail)
            before = self.tail.late if self.tail is not None and self.tail.step == rest.step else []
            late = [*before, *(record for record in late if record.step == rest.step)]
            tail = replace(rest, lanes=rest.lanes | tail.lanes, late=late)
        return tail

    def _finish(self, ranks: Ranks) -> None:
        try:
            for host in ranks.finish():
                self._hear(ranks)
                self._deliver(host, None)
            self._put_late()
        except Exception:
            logger.exception("what other ranks logged last is lost")
        finally:
            ranks.close()


def _with_late(note: bytes, late: Late) -> bytes:
    """Put what a rank logged late behind its note."""
    return len(note).to_bytes(8, "little") + note + late.points().dump() if note or late else b""


def _without_late(note: bytes) -> tuple[bytes, Sequence[Record]]:
    end = 8 + int.from_bytes(note[:8], "little")
    return note[8:end], Points.load(note[end:])
