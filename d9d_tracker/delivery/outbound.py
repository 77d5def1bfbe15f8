"""What is on its way to a backend, in order: windows, in memory or in the backlog on disk, and calls between them."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from d9d_tracker.log import logger
from d9d_tracker.points import Contents, Points

from .backlog import Backlog
from .report import DeliveryReport

MEMORY_BYTES = 16 * 2**20
_MOST_CALLS = 1000


@dataclass(eq=False)
class Queued:
    """A window on its way to the backend.

    ``points`` are all of it, None while they are on disk only: a later process takes back what the backend has of it.
    """

    number: int
    contents: Contents
    points: Points | None
    bytes: int = 0
    kept: bool = False
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    has_sent_hparams: bool = False
    failures: int = 0  # of its hyperparameters, since all points were taken

    def begin_again(self) -> None:
        """Forget what the backend has taken of it."""
        self.accepted, self.refused, self.has_sent_hparams = 0, Counter(), False


class Call(Future[object]):
    """Something to be done with a backend's run and arguments, between two windows."""

    def __init__(self, action: Callable[..., object], arguments: Mapping[str, object] | None = None):
        super().__init__()
        self.action = action
        self.arguments = arguments or {}


class Outbound:
    """What a backend has not accepted: ``items``, oldest first, whose points take about ``memory`` bytes.

    Whoever calls it holds the delivery's lock.
    """

    def __init__(self, backlog: Backlog, report: DeliveryReport):
        self.memory = 0
        self._backlog = backlog
        self._report = report
        kept = backlog.contents()
        self.items: deque[Queued | Call] = deque(
            Queued(number, contents, None, kept=True) for number, contents in kept.items()
        )
        self._next = max(kept, default=-1) + 1
        self._writes = bool(kept)  # else nothing of it is in the backlog
        self._writing_failed = self._has_cancelled = False
        self._said_dropped = 0

    @property
    def windows(self) -> list[Queued]:
        """The windows, oldest first."""
        return [item for item in tuple(self.items) if isinstance(item, Queued)]  # a signal handler may add more

    @property
    def unsafe(self) -> list[Queued]:
        """The windows that are not on disk, oldest first."""
        return [queued for queued in self.windows if not queued.kept]

    @property
    def calls(self) -> list[Call]:
        """The calls, oldest first."""
        return [item for item in tuple(self.items) if isinstance(item, Call)]

    def append(self, points: Points, contents: Contents) -> None:
        """Add a window."""
        before = self.items[-1] if self.items else None
        if isinstance(before, Queued) and before.contents.names == contents.names:
            contents = replace(contents, names=before.contents.names)  # as most windows have: they are kept once
        self.items.append(Queued(self._next, contents, points, contents.memory))
        self._next += 1
        self.memory += contents.memory

    def append_call(self, call: Call) -> None:
        """Add a call; an old one is cancelled where so many wait that what they hold could fill the memory."""
        self.items.append(call)
        calls = self.calls
        if len(calls) > _MOST_CALLS and calls[1].cancel():  # the first may be on its way
            self.items.remove(calls[1])
            if not self._has_cancelled:
                self._has_cancelled = True
                logger.error("%d calls of run.backend wait: from now on, old ones are cancelled", _MOST_CALLS)

    def remove(self, item: Queued | Call) -> None:
        """Forget a window that the backend has accepted, dropped meanwhile or not, or a call that was made."""
        if item not in self.items:
            return
        self.items.remove(item)
        if isinstance(item, Queued):
            self.memory -= item.bytes
            self._report.delivered += item.accepted - item.refused.total()
            self._report.refused.update(item.refused)
            if self._writes:  # with what that failed for before: a later life would take the backend back to it
                try:
                    self._backlog.remove(item.number)
                except Exception as error:
                    self._say_full(error)

    def keep(self) -> None:
        """Put all windows on disk, and out of memory but for the one that is being delivered."""
        windows, new = self.windows, self.unsafe
        if new:
            self._writes = True
            try:
                dropped = self._backlog.put([(one.number, _loaded(one), one.contents) for one in new])
                self._writing_failed = False
                for queued in new:
                    queued.kept = True
                self._drop([queued for queued in windows if queued.number in set(dropped)])
            except Exception as error:
                self._say_full(error)
                while new and self.memory > self._backlog.max_bytes:
                    self._drop([new.pop(0)])
                return
        head = self.items[0] if self.items else None
        for queued in windows:
            if queued is not head:
                self._release(queued)
                queued.points = None

    def _say_full(self, error: Exception) -> None:
        """Say once that the disk is full: it must not end the thread, and memory still holds what it does not."""
        if not self._writing_failed:
            logger.error("the backlog cannot be written, its windows stay in memory: %r", error)
        self._writing_failed = True

    def _release(self, queued: Queued) -> None:
        self.memory -= queued.bytes
        queued.bytes = 0

    def _drop(self, lost: Sequence[Queued]) -> None:
        for queued in lost:
            self.items.remove(queued)
            self._release(queued)
            self._report.dropped += queued.contents.records
        if lost and self._report.dropped >= self._said_dropped:
            self._said_dropped = 2 * self._report.dropped  # said again when as many more are lost
            logger.error("the backlog is full, dropped: %s; raise accumulator.backlog_bytes", in_words(lost))


def _loaded(queued: Queued) -> Points:
    assert queued.points is not None, "what is not on disk is in memory"
    return queued.points


def in_words(windows: Iterable[Queued], calls: int = 0) -> str:
    """Return what waits, for messages."""
    contents = [queued.contents for queued in windows]
    words = []
    if contents:
        names = sorted({name for window in contents for name in window.names})
        shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more series" if len(names) > 10 else "")
        count = sum(window.records for window in contents)
        words.append(f"{count} records of steps {contents[0].first} to {contents[-1].last} ({shown})")
    if calls:
        words.append(f"{calls} call{'s' * (calls > 1)} of run.backend")
    return " and ".join(words) or "nothing"
