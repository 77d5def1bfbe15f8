"""The windows on their way to a backend: in memory, in the backlog on disk, or in both."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from d9d_tracker.points import Points
from d9d_tracker.record import Record

from .backlog import Backlog, Contents
from .report import DeliveryReport

logger = logging.getLogger("d9d_tracker")

MEMORY_BYTES = 16 * 2**20


@dataclass(eq=False)
class Queued:
    """A window on its way to the backend.

    ``records`` are all of it, because what is kept on disk must be whole: a later process takes back what the backend
    has of a window before it delivers it. They are columns until a backend refuses some of them, and None while they
    are on disk only.
    """

    index: int
    contents: Contents
    records: Sequence[Record] | None
    bytes: int = 0
    kept: bool = False
    accepted: int = 0


class WindowQueue:
    """The windows that a backend has not accepted, oldest first. Whoever calls it holds the delivery's lock.

    Args:
        backlog: Where windows are kept on disk.
        report: Counts what no longer fits there.

    Attributes:
        memory: Bytes that its records take in memory, about.
    """

    def __init__(self, backlog: Backlog, report: DeliveryReport):
        self.memory = 0
        self._backlog = backlog
        self._report = report
        kept = backlog.contents()
        self._windows = deque(Queued(index, contents, None, kept=True) for index, contents in kept.items())
        self._keeping_failed = False
        self._said_dropped = 0

    def __len__(self) -> int:
        return len(self._windows)

    def __iter__(self) -> Iterator[Queued]:
        return iter(self._windows)

    @property
    def head(self) -> Queued:
        """The oldest window."""
        return self._windows[0]

    def append(self, index: int, records: Sequence[Record], first: int) -> None:
        """Add a window.

        Args:
            index: Its index.
            records: Its records, in the order of their steps.
            first: The first step that it writes and no earlier one does.
        """
        points = Points.of(records)
        contents = Contents.of(points, min(first, points.first))
        if self._windows and self._windows[-1].contents.names == contents.names:
            contents = Contents(contents.first, contents.last, contents.records, self._windows[-1].contents.names)
        queued = Queued(index, contents, points, points.nbytes)
        self._windows.append(queued)
        self.memory += queued.bytes

    def remove(self, window: Queued) -> None:
        """Forget a window that the backend has accepted.

        Args:
            window: The window; it may have been dropped meanwhile.
        """
        if window in self._windows:
            if window.kept:
                self._backlog.remove(window.index)
            self._windows.remove(window)
            self.memory -= window.bytes
            self._report.delivered += window.accepted

    def keep(self) -> None:
        """Put everything on disk, and out of memory but for the window that is being delivered."""
        for queued in [queued for queued in self._windows if not queued.kept]:
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
            self._drop(set(dropped))
        for queued in list(self._windows)[1:]:
            if queued.kept and queued.records is not None:
                queued.records = None
                self.memory -= queued.bytes
                queued.bytes = 0

    def _drop(self, windows: set[int]) -> None:
        lost = [queued for queued in self._windows if queued.index in windows]
        if lost:
            self._windows = deque(queued for queued in self._windows if queued.index not in windows)
            self.memory -= sum(queued.bytes for queued in lost)
            self._report.dropped += sum(queued.contents.records for queued in lost)
            if self._report.dropped >= self._said_dropped:
                self._said_dropped = 2 * self._report.dropped  # said again when as many more are lost
                logger.error("the backlog is full, dropped: %s; raise accumulator.backlog_bytes", in_words(lost))


def in_words(windows: Iterable[Queued]) -> str:
    """Return what some windows hold, for messages.

    Args:
        windows: Oldest first.
    """
    contents = [queued.contents for queued in windows]
    if not contents:
        return "nothing"
    names = sorted({name for window in contents for name in window.names})
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more series" if len(names) > 10 else "")
    count = sum(window.records for window in contents)
    return f"{count} records of steps {contents[0].first} to {contents[-1].last} ({shown})"
