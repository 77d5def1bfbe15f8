"""One rank's place in the tree: merges what the ranks below it logged into its own, and passes it up."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from d9d_tracker.accumulator.host_window import HostWindow, contradictions
from d9d_tracker.accumulator.registry import label

from . import tree
from .link import FrameReader, FrameSender, LinkLostError
from .message import Packer, Unpacker
from .part import BEGINNING, END, Part, Point
from .rank_set import RankSet, members, rank_set, spell, union

logger = logging.getLogger("d9d_tracker")

_GLANCE_SECONDS = 0.1


class Traffic(NamedTuple):
    """Messages and bytes between a rank and the others, the lengths of the messages included."""

    received: int
    received_bytes: int
    sent: int
    sent_bytes: int


@dataclass
class _Child:
    """A rank that sends here, for itself and the ranks below it."""

    rank: int
    ranks: RankSet
    patience: float
    reader: FrameReader
    unpacker: Unpacker = field(default_factory=Unpacker)
    through: Point = BEGINNING
    held: Part | None = None  # rows behind the last point that was asked for
    missing: RankSet = ()
    left: RankSet = ()
    is_late: bool = False
    is_lost: bool = False
    is_misaligned: bool = False

    @property
    def is_done(self) -> bool:
        return self.through == END


class Node:
    """Merges windows across ranks, off the training thread.

    A node waits for the values of its children up to the last step of its own window, and for at most its share of
    ``timeout``. What has not arrived by then is reported as missing, and the rest goes on. A child that was late is
    not waited for again until it gives a sign of life; one whose connection broke never is.

    Args:
        rank: This rank.
        size: Number of ranks.
        parent: The way to the parent, or None on rank 0.
        children: The ways from the children, by rank.
        timeout: Seconds that rank 0 waits for a window of the others, at most. A node with fewer levels below it waits
            a smaller share, so that its parent does not give it up while it waits for others.
    """

    def __init__(
        self, rank: int, size: int, parent: FrameSender | None, children: dict[int, FrameReader], timeout: float
    ):
        self._rank = rank
        self._size = size
        self._parent = parent
        self._timeout = timeout
        self._packer = Packer()
        levels = max(1, tree.height(0, size))
        self._children = [
            _Child(
                child,
                rank_set(tree.subtree(child, size)),
                timeout * (tree.height(child, size) + 1) / levels,
                reader,
            )
            for child, reader in sorted(children.items())
        ]
        self._finished: Point = BEGINNING
        self._last_index = -1
        self._missing: RankSet = ()
        self._left: RankSet = ()
        self._partly_known: set[str] = set()
        self._contradictions: set[str] = set()

    @property
    def is_writer(self) -> bool:
        """Whether this rank hands values to the backend."""
        return self._rank == 0

    @property
    def traffic(self) -> Traffic:
        """What has come in from below and gone up so far."""
        readers = [child.reader for child in self._children]
        sent = (self._parent.frames, self._parent.bytes) if self._parent is not None else (0, 0)
        return Traffic(sum(one.frames for one in readers), sum(one.bytes for one in readers), *sent)

    def reduce(self, window: HostWindow, ended: bool, hurry: Callable[[], bool]) -> HostWindow | None:
        """Merge a window with those of the ranks below.

        Args:
            window: This rank's window.
            ended: Whether its last step has ended.
            hurry: Tells when waiting must end because windows pile up behind this one.

        Returns:
            The window of all ranks on rank 0; None on the others, whose part is on its way up.
        """
        part = Part.of_one_rank(window, ended)
        start = time.monotonic()
        for child in self._children:
            taken = self._take(child, part.through, start + child.patience, hurry)
            part = self._merge(part, taken)
        self._finished, self._last_index = part.through, window.index
        self._report_missing(part)
        self._report_left(part)
        if self.is_writer:
            self._report_partly_known(part)
        return self._hand_on(part)

    def finish(self) -> Iterator[HostWindow]:
        """Go on receiving after this rank's last window until the ranks below are done, for ``timeout`` at most.

        Yields:
            On rank 0, windows of what other ranks logged after it.
        """
        start = time.monotonic()
        point: Point = BEGINNING
        while point != END:
            point = self._next_point(start)
            rest = Part.nothing(self._last_index + 1, point)
            for child in self._children:
                rest = self._merge(rest, self._take(child, point, start + child.patience, _never))
            if point == END:
                rest.left = union(rest.left, ((self._rank, self._rank),))
            elif rest.is_empty:
                continue
            self._finished, self._last_index = point, rest.window.index
            self._report_missing(rest)
            merged = self._hand_on(rest)
            if merged is not None and not rest.is_empty:
                yield merged

    def close(self) -> None:
        """Close the connections; what is on its way up gets ``timeout`` to leave."""
        if self._parent is not None:
            self._parent.close(time.monotonic() + self._timeout)
        for child in self._children:
            child.reader.close()

    def _take(self, child: _Child, point: Point, deadline: float, hurry: Callable[[], bool]) -> Part:
        taken, child.held = (None, None) if child.held is None else child.held.split(point)
        while child.through < point != END:
            part = self._receive(child, deadline, hurry)
            if part is None:
                break
            if taken is not None:
                part = taken.followed_by(part)
            taken, child.held = part.split(point)
            self._report_misaligned(child, part, point)
        if taken is None:
            taken = Part.nothing(0, point)
        taken.missing = child.ranks if child.through < point else child.missing
        taken.left = child.left
        return taken

    def _next_point(self, start: float) -> Point:
        """Return how far the ranks below have come, with a part received from each that has more to send."""
        for child in self._children:
            is_open = time.monotonic() < start + child.patience
            if is_open and child.held is None and child.through <= self._finished:
                child.held = self._receive(child, start + child.patience, _never)
        return max(
            (child.through for child in self._children if child.held is not None and child.through != END), default=END
        )

    def _receive(self, child: _Child, deadline: float, hurry: Callable[[], bool]) -> Part | None:
        """Return the next part of a child without what is too late, or None if none arrives in time."""
        if child.is_lost:
            return None
        first_glance = True
        while True:
            now = time.monotonic()
            if not first_glance and (now >= deadline or child.is_late or hurry()):
                if not child.is_late:
                    self._report_late(child)
                return None
            first_glance = False
            try:
                frame = child.reader.read(min(now + _GLANCE_SECONDS, max(now, deadline)))
                if frame is None:
                    continue
                part = child.unpacker.unpack(frame)
            except (LinkLostError, ValueError, KeyError) as error:
                self._lose(child, error)
                return None
            if child.is_late:
                child.is_late = False
                logger.warning("%s: back", spell(child.ranks))
            child.through, child.missing, child.left = part.through, part.missing, part.left
            if child.is_done:
                child.reader.acknowledge()
            part, points = part.without_rows_before(self._finished)
            if points:
                logger.error(
                    "%s: %d points for steps up to %d arrived after they were written without them, and are lost",
                    spell(child.ranks),
                    points,
                    self._finished[0],
                )
            return part

    def _merge(self, part: Part, newer: Part) -> Part:
        words = contradictions(part.window.scalars, newer.window.scalars)
        words += contradictions(part.window.histograms, newer.window.histograms)
        for contradiction in words:
            if contradiction not in self._contradictions:
                self._contradictions.add(contradiction)
                logger.error("%s", contradiction)
        return part.merged_with(newer)

    def _hand_on(self, part: Part) -> HostWindow | None:
        if self._parent is None:
            return part.window
        window = part.window
        size = window.lanes.nbytes + window.moments.nbytes + window.counts.nbytes
        self._parent.put(size, lambda: self._packer.pack(part))
        return None

    def _lose(self, child: _Child, error: Exception) -> None:
        child.is_lost = True
        child.reader.close()
        if not child.is_done:
            logger.error("rank %d is gone (%s): going on without %s", child.rank, error, spell(child.ranks))

    def _report_late(self, child: _Child) -> None:
        child.is_late = True
        logger.error("rank %d sent nothing in time: going on without %s", child.rank, spell(child.ranks))

    def _report_misaligned(self, child: _Child, part: Part, point: Point) -> None:
        both_ended = point[1] and part.through[1] and part.through != END
        if both_ended and part.through != point and part.through > self._finished and not child.is_misaligned:
            child.is_misaligned = True
            logger.warning(
                "windows end at different steps: %d here on rank %d, %d on rank %d. Call set_step and flush alike on "
                "all ranks; values are merged by step, and those behind the window here wait for the next one",
                point[0],
                self._rank,
                part.through[0],
                child.rank,
            )

    def _report_missing(self, part: Part) -> None:
        index, missing = part.window.index, part.missing
        if missing == self._missing:
            return
        new, back = members(missing) - members(self._missing), members(self._missing) - members(missing)
        if new:
            logger.error("window %d and on: no values from %s", index, spell(rank_set(new)))
        if back:
            logger.warning("window %d and on: values from %s again", index, spell(rank_set(back)))
        self._missing = missing

    def _report_left(self, part: Part) -> None:
        new = members(part.left) - members(self._left)
        if new and self.is_writer:
            logger.warning("%s left the run before step %d; it goes on without", spell(rank_set(new)), part.through[0])
        self._left = union(self._left, part.left)

    def _report_partly_known(self, part: Part) -> None:
        present = self._size - len(members(part.missing)) - len(members(part.left))
        window = part.window
        new: list[str] = []
        for series, ranks in ((window.scalars, part.scalar_ranks), (window.histograms, part.histogram_ranks)):
            for slot in (ranks < present).nonzero()[0]:
                one = series[slot]
                words = label(one.name, one.context)
                if "rank" not in dict(one.context) and words not in self._partly_known:
                    self._partly_known.add(words)
                    new.append(f"{words} ({ranks[slot]} of {self._size})")
        if new:
            logger.info("known to some ranks only: %s", "; ".join(new))


def _never() -> bool:
    return False
