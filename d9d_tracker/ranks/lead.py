"""Rank 0 among the ranks of a run: it says who meets, gets what all have logged, and waits for none without a bound."""

import base64
import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from typing_extensions import override

from d9d_tracker.log import logger
from d9d_tracker.windows.host_window import HostWindow, empty_window
from d9d_tracker.windows.in_transit import from_text
from d9d_tracker.windows.spread import merge_expanded
from d9d_tracker_kernels.binning import LAST_STEP

from .board import Board, BoardLostError, wait
from .meeting import END, Meeting, Met
from .ranks import MovedError, Ranks
from .ranks_in_words import spell

_SILENT_SECONDS = 5.0
_SAY_SECONDS = 10.0
_QUESTIONS = 3


class Lead(Ranks):
    """Rank 0; see ``Ranks``."""

    def __init__(self, board: Board, rank: int, size: int, timeout: float):
        super().__init__(board, rank, size, timeout)
        self._meeting = Meeting(rank)
        self._others = list(range(1, size))
        self._away: dict[int, tuple[int, int]] = {}  # who may come back: the first step missing, the generation
        self._is_formed = False
        self._generation = self._ask = 0
        self._meetings: dict[int, int] = {}  # of each generation, how many are over
        self._step = -1  # the last one of this rank's last window
        self._left_behind: HostWindow | None = None
        self._next_look = 0.0
        self._says_at = float("inf")
        self._is_over = False
        self._publish()

    @override
    def reduce(self, window: HostWindow, ended: bool, is_last: bool = False, note: bytes = b"") -> HostWindow | None:
        self._step = window.steps[-1]
        return self._meet(window, END if is_last else 2 * self._step + ended, note)

    @override
    def finish(self) -> Iterator[HostWindow]:
        while self._others:
            merged = self._meet(empty_window(0, [], [], [], []), END, b"")
            if merged.steps or merged.histograms:
                yield merged

    @override
    def leave(self, patience: float, failed: bool) -> float:
        self._says_at = time.monotonic() + _SAY_SECONDS
        return super().leave(max(patience, self._timeout), failed)

    @override
    def close(self) -> None:
        self._drop_group()
        for first in sorted({first for first, _ in self._away.values()}):
            away = [rank for rank, (since, _) in self._away.items() if since == first]
            self.missing.append(f"{spell(away)}: from step {first} on")
        self._is_over = True
        with contextlib.suppress(BoardLostError):  # the store is gone, and with it anybody who would read it
            self._publish()

    def _meet(self, window: HostWindow, point: int, note: bytes) -> HostWindow:
        """Merge a window, whose values are complete up to a point, with what the others have for it."""
        self._began = time.monotonic()
        self._next_look = self._began + self._period
        while True:
            if self._left_behind is not None:
                window, self._left_behind = merge_expanded(window, self._left_behind), None
            try:
                self._look_at_the_clock()
                self._welcome()
                if not self._is_formed:
                    self._drop_group()
                    self._form()
                if self._group is None:
                    met = Met(window, {0: point}, [(0, note)] if note else [], {})
                else:
                    met = self._meeting.merge(self._group, [0, *self._others], window, point, note)
                    self._meetings[self._generation] = self._meetings.get(self._generation, 0) + 1
                    try:
                        self._confirm(self._group)
                    except (MovedError, RuntimeError, BoardLostError):
                        self._drop_group()  # whoever has not heard it learns it from the next generation
                break
            except Exception as error:
                self._drop_group()
                if isinstance(error, BoardLostError):
                    self._exclude(self._others, str(error))
                    self._away, self._is_formed = {}, True
                elif isinstance(error, RuntimeError):
                    self._exclude(self._silent(), str(error))
                elif not isinstance(error, MovedError):  # it would raise again: the others are met with the next window
                    raise
        self.taken = self.taken | {rank: index + 1 for rank, index in met.indices.items() if rank > 0}
        self._notes += met.notes
        self._part_from([rank for rank, theirs in met.points.items() if rank and theirs == END], point)
        return self._handed_on(met.window, met.points)

    def _form(self) -> None:
        """Announce a generation of the ranks that are here, and wait until all of them have come."""
        before, self._generation = self._generation, self._generation + 1
        generation, members = self._generation, [0, *self._others]
        record = {"members": members, "step": self.written + 1, "meetings": self._meetings.get(before, 0)}
        self._board.put(f"generation/{generation}", record)
        self._publish()
        missing = set(self._others)

        def all_are_here() -> bool:
            for rank, one in self._answers(missing).items():
                if one["generation"] == generation and one["waits"]:
                    missing.discard(rank)
                    self._name_lost(rank, one["lost"])
            return not missing

        wait(all_are_here, self._look, self._size)
        if self._others:
            self._board.put(f"go/{generation}", True)
            self._meet_in(generation, members, self._look)
        self._is_formed = True

    def _look(self) -> None:
        """See, once a period, whether it makes sense to wait for those who are waited for."""
        self._look_at_the_clock()
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + self._period
        answers = self._answers(self._others)
        if left := [rank for rank, one in answers.items() if one["left"]]:
            self._take_over(left)
            raise MovedError
        if self._group is not None and any(one["back"] >= self._generation for one in answers.values()):
            raise MovedError  # one has given this generation up, and waits for the next
        # A few questions more: that a rank is here is known by its answer.
        if now - self._began > self._timeout + _QUESTIONS * self._period:
            here = {
                rank
                for rank, one in answers.items()
                if one["waits"] and one["generation"] == self._generation and one["ask"] > self._ask - _QUESTIONS
            }
            self._began = now
            self._exclude(set(self._others) - here, f"waited for {self._timeout:g} s")
            raise MovedError
        self._question()

    def _silent(self) -> set[int]:
        """Return the ranks that give no answer in some seconds; those who left are taken over."""
        self._question()
        until = time.monotonic() + max(_SILENT_SECONDS, 2.5 * self._period)
        silent = set(self._others)

        def all_have_answered() -> bool:
            answers = self._answers(silent)
            self._take_over([rank for rank, one in answers.items() if one["left"]])
            silent.intersection_update(self._others)
            silent.difference_update(rank for rank, one in answers.items() if one["ask"] >= self._ask)
            return not silent or time.monotonic() > until

        wait(all_have_answered, lambda: None, self._size)
        return silent

    def _exclude(self, ranks: Iterable[int], reason: str) -> None:
        """Go on without some ranks, which may come back."""
        ranks, step = set(ranks), self.written + 1
        if not ranks:
            return
        self._away |= dict.fromkeys(ranks, (step, self._generation))
        self._others = [rank for rank in self._others if rank not in ranks]
        words = "no values from %s (%s): from step %d on, the run goes on without; training goes on"
        logger.error(words, spell(ranks), reason, step)

    def _welcome(self) -> None:
        """Take those in again who were away, and wait for the others to be merged with them."""
        for rank, one in self._answers(list(self._away)).items():
            if one["back"] >= self._away[rank][1] and one["waits"]:
                self._is_formed = False
                del self._away[rank]
                self._others = sorted([*self._others, rank])

    def _name_lost(self, rank: int, lost: tuple[int, int] | None) -> None:
        """Say what is not in the run of a rank that has come back."""
        words = f"rank {rank}: steps {lost[0]} to {lost[1]}" if lost else ""
        if lost and words not in self.missing:
            self.missing.append(words)
            said = "rank %d is back: its steps %d to %d are not in the run, from step %d on it is"
            logger.warning(said, rank, *lost, lost[1] + 1)

    def _take_over(self, left: list[int]) -> None:
        """Read what ranks have left behind that have left the run without waiting."""
        for rank in sorted(set(left) & set(self._others)):
            data = self._board.get(f"left/{rank}")
            is_here = self._meetings.get(data["generation"], 0) > data["meeting"]  # the first, which it was not sure of
            for window in map(from_text, data["windows"][is_here:]):
                before = self._left_behind
                self._left_behind = window if before is None else merge_expanded(before, window)
            self._notes += [(rank, base64.b64decode(note)) for note in data["notes"][is_here:] if note]
            self._part_from([rank], None)

    def _part_from(self, leaving: list[int], point: int | None) -> None:
        if not leaving:
            return
        self._is_formed = False
        self._others = [rank for rank in self._others if rank not in leaving]
        if point != END and (point is not None or not self._leaves_at):
            logger.warning("%s left the run before step %d; it goes on without", spell(leaving), self._step)

    def _look_at_the_clock(self) -> None:
        """Once this rank closes: say whom it waits for, and go without them in the end."""
        now, others = time.monotonic(), self._others
        if self._leaves_at is None or not others:
            return
        if now > self._says_at:
            self._says_at = float("inf")
            words = "closing waits for %s to close too, for %.3g s at most"
            logger.warning(words, spell(others), self._leaves_at - now)
        if now > self._leaves_at:
            step = self.written + 1
            self._others, self._away, self._is_over = [], {}, True
            self.missing.append(f"{spell(others)}: from step {step} on")
            words = "closed while %s still log: what they log from step %d on is not in the run"
            logger.error(words, spell(others), step)
            self._publish()
            raise MovedError

    def _handed_on(self, merged: HostWindow, points: dict[int, int]) -> HostWindow:
        """Hold back the rows of steps for which some rank may still send values."""
        if self.held is not None:
            merged, self.held = merge_expanded(self.held, merged), None
        least = min(points.values())
        last = least // 2 if least % 2 or least == points[0] else least // 2 - 1
        rows = sum(step <= last for step in merged.steps)
        self.written = max(self.written, *merged.steps[:rows], -1)
        if rows == len(merged.steps):
            return merged
        every = np.arange(len(merged.scalars))
        self.held = merged.since(last + 1).only(every, every[:0])
        counts = merged.counts.copy()  # a histogram cannot be divided by steps: it is filed at one that is finished
        counts[:, LAST_STEP] = np.minimum(counts[:, LAST_STEP], max(0, last))
        steps, times, lanes = merged.steps[:rows], merged.times[:rows], merged.lanes[:rows]
        return replace(merged, steps=steps, times=times, lanes=lanes, counts=counts)

    @override
    def _drop_group(self) -> None:
        self._is_formed = False
        super()._drop_group()

    def _question(self) -> None:
        self._ask += 1
        self._publish()

    def _publish(self) -> None:
        self._board.put("lead", {"generation": self._generation, "ask": self._ask, "over": self._is_over})

    def _answers(self, ranks: Iterable[int]) -> dict[int, dict[str, Any]]:
        answers = {rank: self._board.get(f"answer/{rank}") for rank in ranks}
        return {rank: answer for rank, answer in answers.items() if answer is not None}
