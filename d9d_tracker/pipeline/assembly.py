"""Windows become points: with what was written of their first step, what other ranks say, and what came late."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from d9d_tracker.bank.staging import Window
from d9d_tracker.delivery.report import RunReport
from d9d_tracker.log import logger
from d9d_tracker.points import TAKES_NOTHING_BACK, Contents, Points
from d9d_tracker.ranks.ranks import Ranks
from d9d_tracker.record import Record
from d9d_tracker.windows.host_window import HostWindow, empty_window, joined
from d9d_tracker.windows.in_transit import InTransit, Logged
from d9d_tracker.windows.late import Late
from d9d_tracker.windows.promises import Promises
from d9d_tracker.windows.readings import with_readings
from d9d_tracker.windows.spread import completed, expand, merge_expanded, of_spread
from d9d_tracker.windows.window_points import Counted, Tail, points, with_totals
from d9d_tracker_kernels.lanes import COUNT

from .nonfinite import NonFiniteWatch

_RECENT = 2  # windows that a rank saves though rank 0 has them, which may have saved its state before


@dataclass(frozen=True)
class State:
    """What a state holds of what has left the device.

    Attributes:
        tail: What was written for the last, unfinished step.
        late: What waits for its step to be reached, by other ranks too.
        expanded: What other ranks of an earlier life logged to series of ``scope="spread"``, if anything.
        in_transit: What is on its way to rank 0, or held back there.
        totals: The running totals that were delivered.
    """

    tail: Tail | None = None
    late: Late = field(default_factory=Late)
    expanded: HostWindow | None = None
    in_transit: InTransit = field(default_factory=InTransit)
    totals: Counted = field(default_factory=dict)


class Finished(NamedTuple):
    """What the backends get of a window.

    Attributes:
        points: Its points.
        contents: What they are in short.
        unfinished: The step that has not ended, if any.
    """

    points: Points
    contents: Contents
    unfinished: int | None


class Assembly:
    """Makes points of windows, one after the other, on the thread of the pipeline.

    ``left`` is what an earlier life of the run has left. Some point of a scalar series ``has_merged`` several values.
    """

    def __init__(
        self, rank: int, ranks: Ranks | None, nonfinite: NonFiniteWatch, report: RunReport, left: State, one_row: bool
    ):
        self.rank = rank
        self.ranks = ranks
        self.promises = Promises()
        self.has_merged = False
        self.nonfinite = nonfinite
        self.report = report
        self._has_one_row = one_row
        self._newest = -1
        self._tail = left.tail
        self._late = Late()
        self._expanded = left.expanded
        self._earlier = left.in_transit.merged(left.in_transit.taken)
        self._unwritten = left.in_transit.unwritten
        self._recent: tuple[Logged, ...] = ()
        self._let_go = -1
        self._totals = left.totals
        if ranks is not None:
            report.missing = ranks.missing
            ranks.written = self._unwritten - 1
            if left.in_transit.lacks_windows_of(rank) and left.in_transit.first > self._unwritten:
                ranks.lost_since = self._unwritten
        self._note_state()

    def resumed(self) -> Finished | None:
        """Return what was taken back of the unfinished step as the run was opened again, to be written again."""
        tail = self._tail
        if tail is None:
            return None
        made = points(of_spread(tail.as_window(), False)).replaced(tail.late)
        return Finished(made, Contents.of(made, tail.step), tail.step)

    @property
    def is_plain(self) -> bool:
        """Whether nothing of before, and nobody else, is to be merged with the next window."""
        return self.ranks is None and self._tail is None and self._expanded is None and self._earlier is None

    @property
    def awaits_one(self) -> bool:
        """Whether something waits for the next window, even if nothing was logged in it."""
        return not self.is_plain or bool(self._late)

    def group(self, windows: Sequence[Window]) -> Sequence[Window]:
        """Return the first of windows that follow each other, as many as can be taken together."""
        count = 1
        if self.is_plain:
            for before, window in itertools.pairwise(windows):
                is_more = window.scalars[: len(before.scalars)] == before.scalars
                if not is_more or before.unfinished is not None:
                    break
                count += 1
        return windows[:count]

    def take(self, windows: Sequence[Window]) -> Finished | None:
        """Return the points of windows that are a ``group``; None if the ranks are not merged any more."""
        window, came = windows[-1], Late()
        self._newest = window.index
        for one in windows:
            came.records += one.late.records
            came.readings += one.late.readings
            self._late.hparams |= one.late.hparams
        self._late.records += came.records
        parts = [self._read(one) for one in windows]
        host = joined(parts) if len(parts) > 1 else parts[0]
        if came.readings:
            host = with_readings(host, came.readings)
        self.has_merged = self.has_merged or bool((host.lanes[:, COUNT] > 1).any())
        if self.promises.pending:
            for part in parts:
                self.promises.look(part)
        logged = expanded = host
        if any(series.spread for series in host.scalars):
            logged = completed(host, self._tail)
            expanded = expand(logged, self.rank)
        expanded = self._with_earlier(expanded, window.unfinished)
        self.nonfinite.look(expanded, parts, came.records)
        merged = expanded if self.ranks is None else self._merge(self.ranks, expanded, window)
        finished, late = None, []
        if merged is not None:
            finished, merged, late = self._finish_window(merged, window.unfinished)
        held = None if self.ranks is None else self.ranks.held
        if self._tail is None or held is None or self._tail.step not in held.steps:  # else more is to come for it
            self._tail = None if window.unfinished is None else self._tail_of(merged, logged, late)
        if self.rank > 0:
            *old, last = (*self._recent, Logged(self.rank, window.index, logged.copy()))
            self._let_go = old[0].index if len(old) == _RECENT else self._let_go
            self._recent = (*old, last)[-_RECENT:]
        self._note_state()
        return finished

    def _read(self, window: Window) -> HostWindow:
        try:
            return window.wait()
        except Exception as error:
            self.report.unread += 1
            logger.error("window %d (steps %s) is lost: %r", window.index, window.steps, error)
            # The other ranks wait for this one's part.
            return empty_window(window.index, window.steps, window.times, window.scalars, [])

    def finish(self) -> Iterator[Finished]:
        """Yield what other ranks log until all have left, and what waits for a step that the run has not reached."""
        if self.ranks is not None:
            try:
                for host in self.ranks.finish():
                    self._hear(self.ranks)
                    yield self._finish_window(host, None)[0]
            finally:
                self.ranks.close()
        if self._late:
            last = max((record.step for record in self._late.records), default=TAKES_NOTHING_BACK)
            made = self._late.points()
            yield Finished(made, Contents.of(made, last), None)

    def state(self, pending: Sequence[Window]) -> State:
        """Return what a state has to hold, with windows that may not be taken yet; not while windows are swapped."""
        index, reached = self._reached
        windows, late = list(reached.in_transit.windows), Late(reached.late.records[:], dict(reached.late.hparams))
        tail = reached.tail  # which the first of them completes
        for window in {window.index: window for window in pending}.values():
            if window.index > index and window.packed is not None:
                windows.append(Logged(self.rank, window.index, completed(window.read().copy(), tail)))
                late.add(window.late.records, window.late.hparams)
                tail = None
        return replace(reached, late=late, in_transit=replace(reached.in_transit, windows=windows))

    def _note_state(self) -> None:
        """Note how far the thread has come, at once, for whoever takes a state meanwhile."""
        late = Late(self._late.records[:], dict(self._late.hparams))
        held, taken = (None, {}) if self.ranks is None else (self.ranks.held, self.ranks.taken)
        rows = [one for one in (self._earlier, held) if one is not None]
        unwritten = self._unwritten if self.ranks is None else self.ranks.written + 1
        if self._tail is not None:  # more is to come for a step that was written
            unwritten = min(unwritten, self._tail.step)
        kept = functools.reduce(merge_expanded, rows) if rows else None
        in_transit = InTransit(list(self._recent), kept, dict(taken), unwritten, self._let_go)
        self._reached = self._newest, State(self._tail, late, self._expanded, in_transit, self._totals)

    def _with_earlier(self, host: HostWindow, unfinished: int | None) -> HostWindow:
        """Add what other ranks of an earlier life logged for a window, and keep it for a step that goes on."""
        if self._expanded is not None:
            expanded = replace(self._expanded, steps=host.steps) if self._has_one_row else self._expanded
            rest = None if unfinished is None else expanded.since(unfinished)
            self._expanded = rest if rest is not None and rest.steps else None
            host = merge_expanded(host, expanded)
        if self._earlier is not None:
            host, self._earlier = replace(merge_expanded(self._earlier, host), index=host.index), None
        return host

    def _merge(self, ranks: Ranks, host: HostWindow, window: Window) -> HostWindow | None:
        """Merge a window with those of the other ranks, and take what they say besides."""
        note = self.nonfinite.take_note()
        if self.rank > 0:
            note, self._late = _with_late(note, self._late), Late()
        elif note:
            note = _with_late(note, Late())
        merged = ranks.reduce(host, window.unfinished is None, window.is_last, note)
        self._hear(ranks)
        if merged is None:
            self.report.unread += ranks.is_lost
        return merged

    def _hear(self, ranks: Ranks) -> None:
        others: list[Record] = []
        for _, note in sorted(ranks.take_notes(), key=lambda one: -one[0]):  # the lowest rank has the last word
            found, late = _without_late(note)
            self.nonfinite.hear(found)
            others += late
        self._late.records = [*others, *self._late.records]
        self.nonfinite.tell(is_told_elsewhere=self.rank > 0 and not ranks.is_lost)

    def _finish_window(self, host: HostWindow, unfinished: int | None) -> tuple[Finished, HostWindow, list[Record]]:
        """Return the points of a window, the states that they are made of, and what came late and is not in these."""
        host, self._totals = with_totals(host.since(self._unwritten), self._totals)
        if self._tail is not None:
            self._tail.merge_into(host)
        made, late = points(host), list[Record]()
        first = made.first if made and host.steps else next(iter(host.steps), TAKES_NOTHING_BACK)
        if self._tail is not None and first == self._tail.step:
            first += 1  # whose part the window before has written: this must not be the one to take it back
        if host.steps and (self._late.records or self._late.hparams):
            taken = self._late.take_until(host.steps[-1])
            late, made = taken.records, replace(made, hparams=taken.hparams)
        if self._tail is not None and self._tail.step in host.steps:
            late = [*self._tail.late, *late]  # they stand in place of what was merged since
        made = made.replaced(late) if late else made
        return Finished(made, Contents.of(made, first), unfinished), host, late

    def _tail_of(self, written: HostWindow | None, logged: HostWindow, late: list[Record]) -> Tail:
        """Keep what was written for the step that goes on; of series that are expanded, what this rank has logged."""
        tail = Tail.of(of_spread(logged, True), None)
        if written is not None and written.steps[-1:] == [tail.step]:  # else it is held back
            rest = Tail.of(of_spread(written, False), self._tail)
            late = [record for record in late if record.step == rest.step]
            tail = replace(rest, lanes=rest.lanes | tail.lanes, late=late)
        return tail


def _with_late(note: bytes, late: Late) -> bytes:
    """Put what a rank logged late behind its note."""
    return len(note).to_bytes(8, "little") + note + late.points().dump() if note or late else b""


def _without_late(note: bytes) -> tuple[bytes, Sequence[Record]]:
    end = 8 + int.from_bytes(note[:8], "little")
    return note[8:end], Points.load(note[end:])
