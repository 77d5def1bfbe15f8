"""A rank above 0 among the ranks of a run: it brings its windows where the lead says, and knows which have arrived."""

import base64
import time
from collections.abc import Callable, Iterator

from typing_extensions import override

from d9d_tracker.log import logger
from d9d_tracker.windows.host_window import HostWindow
from d9d_tracker.windows.in_transit import to_text

from .board import Board, BoardLostError, wait
from .meeting import END, Meeting
from .pulse import Pulse
from .ranks import MovedError, Ranks

_LATER_THAN_THE_LEAD = 6  # periods


class _LeavesError(Exception):
    """This rank closes, and has waited long enough."""


class _GivesUpError(Exception):
    """Rank 0 is not there, or not for this rank."""


class Member(Ranks):
    """A rank above 0; see ``Ranks``."""

    def __init__(self, board: Board, rank: int, size: int, timeout: float):
        super().__init__(board, rank, size, timeout)
        self._pulse = Pulse(board, rank, self._period)
        self._meeting = Meeting(rank)
        self._members: list[int] = []
        self._generation = self._meetings = 0  # that of the group, or the last one, and how many meetings it had
        self._through = 0  # the last generation that this rank has nothing more to do with
        self._is_unsure = False  # whether rank 0 has the window of the meeting that broke
        self._has_given_up = False  # rank 0, until it calls to another generation
        self._behind: list[tuple[str, bytes]] = []
        self._is_alone = False  # whether nobody may come for what is left behind

    @override
    def reduce(self, window: HostWindow, ended: bool, is_last: bool = False, note: bytes = b"") -> None:
        self.is_lost = False
        if self._behind:
            self._stay_behind(window, note)
            return
        self._began = time.monotonic()
        self._pulse.know(waits=True)
        try:
            self._bring(window, END if is_last else 2 * window.steps[-1] + ended, note)
        except _LeavesError:
            self._is_alone = self._is_unsure  # a meeting broke before, and the lead has not called to another
            self._break()
            self._stay_behind(window, note)
        except Exception as error:  # whatever it is, it would be so again
            self._break()
            self._is_unsure, self._has_given_up = False, True
            self._lose(window, str(error))
        finally:
            self._pulse.know(waits=False)

    @override
    def finish(self) -> Iterator[HostWindow]:
        if self._behind:
            try:
                self._leave_behind()
            except BoardLostError as error:
                self.is_lost = True
                logger.error("ranks are gone (%s): the last window of this rank is not in the run", error)
        yield from ()

    @override
    def close(self) -> None:
        self._pulse.close()
        self._drop_group()

    def _bring(self, window: HostWindow, point: int, note: bytes) -> None:
        """Have rank 0 take a window: in this generation or a later one."""
        while True:
            try:
                if self._group is None:
                    joined = self._join(window)
                    if joined is None:
                        return
                    window = joined
                assert self._group is not None
                points = self._meeting.merge(self._group, self._members, window, point, note).points
                self._confirm(self._group)
            except (MovedError, RuntimeError):
                self._break()
                continue
            self._meetings += 1
            if any(point == END for rank, point in points.items() if rank > 0):
                self._drop_group()  # the next generation is without those who have left
                self._through = self._generation
            return

    def _join(self, window: HostWindow) -> HostWindow | None:
        """Meet in the newest generation; return what of the window can be merged there, None if it is all over."""
        self._pulse.look()
        while True:
            self._wait(lambda: self._pulse.lead["generation"] > self._through)
            self._has_given_up = False
            self._look()
            if self._is_unsure:
                self._is_unsure = False
                if self._board.get(f"generation/{self._through + 1}")["meetings"] > self._meetings:
                    return None
            generation = self._pulse.lead["generation"]
            record = self._board.get(f"generation/{generation}")
            if self._rank not in record["members"]:
                self._through = generation
                self._lose(window, "rank 0 went on without this rank", is_whole=False)
                self._pulse.say(back=generation, waits=True)
                continue
            if self.lost_since is not None:
                if window.steps[-1] < record["step"]:
                    self.is_lost = True
                    return None
                window = window.since(record["step"])
            lost = None if self.lost_since is None else [self.lost_since, window.steps[0] - 1]
            self._pulse.say(generation=generation, waits=True, lost=lost)
            go = f"go/{generation}"
            self._wait(
                lambda: self._pulse.lead["generation"] > generation or self._board.get(go) is not None  # noqa: B023 called in this turn
            )
            if self._pulse.lead["generation"] > generation:
                continue
            self._generation, self._meetings, self._members = generation, 0, record["members"]
            self._meet_in(generation, self._members, self._look)
            self._come_back(window.steps[0])
            return window

    def _look(self) -> None:
        """See whether it makes sense to wait for others."""
        now = time.monotonic()
        if self._leaves_at is not None and now > self._leaves_at:
            raise _LeavesError
        if self._pulse.is_cut_off:
            raise _GivesUpError("the job's store is gone")
        if self._pulse.lead["over"]:
            raise _GivesUpError("rank 0 has left the run")
        if self._has_given_up or now > self._began + self._timeout + _LATER_THAN_THE_LEAD * self._period:
            raise _GivesUpError(f"waited for {self._timeout:g} s")
        if self._group is not None and self._pulse.lead["generation"] > self._generation:
            raise MovedError

    def _break(self) -> None:
        """Leave a meeting in its middle: whether rank 0 has the window, the next generation says."""
        if self._generation > self._through:
            self._is_unsure = True
            self._through = self._generation
        self._drop_group()

    def _lose(self, window: HostWindow, reason: str, is_whole: bool = True) -> None:
        self.is_lost = is_whole
        if self.lost_since is None:
            self.lost_since = window.steps[0]
            words = "ranks are gone (%s): what this rank logs from step %d on is not in the run; training goes on"
            logger.error(words, reason, self.lost_since)
        if is_whole:
            self._pulse.say(back=self._through, waits=False)

    def _come_back(self, step: int) -> None:
        if self.lost_since is not None:
            steps = f"steps {self.lost_since} to {step - 1}"
            self.missing.append(f"rank {self._rank}: {steps}")
            self.lost_since = None
            logger.warning("in the run again from step %d on; %s of this rank are not in it", step, steps)

    def _stay_behind(self, window: HostWindow, note: bytes) -> None:
        self._behind.append((to_text(window), note))
        if self._is_alone:
            self._lose(window, "rank 0 does not answer")

    def _leave_behind(self) -> None:
        """Write the windows that could not wait for the others where rank 0 finds them."""
        windows = [window for window, _ in self._behind]
        notes = [base64.b64encode(note).decode() for _, note in self._behind]
        meeting = self._meetings if self._is_unsure else END
        left = {"generation": self._generation, "meeting": meeting, "windows": windows, "notes": notes}
        self._board.put(f"left/{self._rank}", left)
        self._pulse.say(left=True)
        logger.info("closed before the others: rank 0 merges the last window of this rank later")

    def _wait(self, is_done: Callable[[], bool]) -> None:
        def look() -> None:
            self._pulse.look()
            self._look()

        wait(is_done, look, self._size)
