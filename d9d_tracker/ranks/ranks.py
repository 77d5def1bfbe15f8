"""The ranks of an open run, as the rest of the tracker sees them: rank 0 is the lead, the others are members.

Every rank meets the others with its n-th window, off the training thread, in a group of gloo (``Meeting``). Which ranks
that are, the lead alone decides: it writes numbered *generations* on the job's board, each with its members, and all of
them meet in a new group. A member that leaves, is silent or does not come in time is no member of the next generation;
one that is back is. A window counts when rank 0 has said that it has it; else its rank brings it to the next
generation, which says how many meetings of the one before rank 0 has. On the board lie:

- ``lead``: the newest generation, a number that rises when the lead asks who is there, and whether it has left;
- ``generation/N``: its members, the first step that is not written yet, and how many meetings the one before had;
- ``go/N``: all of its members are there;
- ``answer/R``: of rank R, the last question it has seen, its generation, whether it waits there, whether it has left,
  which generation it has given up or is not in, and since which step its values were lost;
- ``left/R``: the window that rank R left behind, because it could not wait for the others.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch

from d9d_tracker.windows.host_window import HostWindow

from .board import Board, period
from .group import Group

# Of those who raised or were interrupted: long enough for ranks that do the same, too short to be noticed.
_FAILED_PATIENCE_SECONDS = 1.0
# What gloo and the store may take besides, when a rank leaves.
_LEAVING_SECONDS = 10.0


class MovedError(Exception):
    """A wait for other ranks was given up. Never leaves this room."""


class Ranks(ABC):
    """The ranks that share a run, of which this process is one.

    A window waits ``timeout`` seconds for a rank that is alive and does not come, at most.

    Attributes:
        is_lost: Whether the last window of this rank did not reach rank 0.
        lost_since: Above rank 0, the first step whose values did not reach it; None if it is in the run.
        missing: Which ranks' values of which steps are not in the run, in words.
        held: On rank 0, rows of steps to which some rank may still log.
        taken: On rank 0, how many windows of each other rank are merged.
        written: On rank 0, the last step of which all rows were handed on.
    """

    def __init__(self, board: Board, rank: int, size: int, timeout: float):
        self.is_lost = False
        self.lost_since: int | None = None
        self.missing: list[str] = []
        self.held: HostWindow | None = None
        self.taken: dict[int, int] = {}
        self.written = -1
        self._board, self._rank, self._size, self._timeout = board, rank, size, timeout
        self._period = period(size)
        self._notes: list[tuple[int, bytes]] = []
        self._group: Group | None = None
        self._began = 0.0
        self._leaves_at: float | None = None

    @abstractmethod
    def reduce(self, window: HostWindow, ended: bool, is_last: bool = False, note: bytes = b"") -> HostWindow | None:
        """Merge a window, which is not changed, with those of the others; every rank calls it for its n-th window.

        Its last step has ``ended`` or not. A ``note`` to rank 0 costs a message, so there should seldom be one. On
        rank 0, returns the rows up to the last step for which every rank has sent its values; None on the others.
        """

    def leave(self, patience: float, failed: bool) -> float:
        """Wait for no other rank longer than ``patience`` seconds from now on, or less: others wait for who ``failed``.

        Called on another thread. Returns the seconds after which this rank is done, at the latest.
        """
        patience = _FAILED_PATIENCE_SECONDS if failed else patience
        self._leaves_at = time.monotonic() + patience
        return patience + _LEAVING_SECONDS

    @abstractmethod
    def close(self) -> None:
        """End every thread and every collective. It is called when nothing more is merged."""

    def finish(self) -> Iterator[HostWindow]:
        """Take part, after this rank's last window, as long as others need it; yields, on rank 0, what they log."""
        yield from ()

    def take_notes(self) -> list[tuple[int, bytes]]:
        """Return, on rank 0, the notes that came since the last call, each with its rank; one's own too."""
        notes, self._notes = self._notes, []
        return notes

    def _meet_in(self, generation: int, members: list[int], look: Callable[[], None]) -> None:
        store = Board(self._board.store, f"gloo/{generation}").store
        self._group = Group(store, members.index(self._rank), len(members), 2 * self._timeout + 60, look)

    def _confirm(self, group: Group) -> None:
        """Have the members hear that rank 0 has their windows; it may raise there though some have heard it."""
        group.broadcast(torch.zeros(1, dtype=torch.int64, device="cpu"))

    def _drop_group(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None
