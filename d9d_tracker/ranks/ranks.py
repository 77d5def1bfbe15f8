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

from abc import ABC, abstractmethod
from collections.abc import Iterator

from d9d_tracker.accumulator.host_window import HostWindow

# Of those who raised or were interrupted: long enough for ranks that do the same, too short to be noticed.
FAILED_PATIENCE_SECONDS = 1.0
# What gloo and the store may take besides, when a rank leaves.
LEAVING_SECONDS = 10.0


class MovedError(Exception):
    """A wait for other ranks was given up. Never leaves this room."""


class Ranks(ABC):
    """The ranks that share a run.

    Attributes:
        is_lost: Whether the last window of this rank did not reach rank 0.
        missing: Which ranks' values of which steps are not in the run, in words.
        held: On rank 0, rows of steps to which some rank may still log.
        taken: On rank 0, how many windows of each other rank are merged.
    """

    def __init__(self):
        self.is_lost = False
        self.missing: list[str] = []
        self.held: HostWindow | None = None
        self.taken: dict[int, int] = {}
        self._notes: list[tuple[int, bytes]] = []

    @abstractmethod
    def reduce(self, window: HostWindow, ended: bool, is_last: bool = False, note: bytes = b"") -> HostWindow | None:
        """Merge a window with those of the other ranks; every rank calls it for its n-th window.

        Args:
            window: This rank's window; it is not changed.
            ended: Whether its last step has ended.
            is_last: Whether this rank closes the run with it.
            note: What rank 0 is to know besides; it costs a message, so there should seldom be one.

        Returns:
            On rank 0, the rows up to the last step for which every rank has sent its values; None on the others.
        """

    @abstractmethod
    def leave(self, patience: float, failed: bool) -> float:
        """Have no wait for other ranks last longer than this from now on; called on another thread.

        Args:
            patience: Seconds to wait for them, at most.
            failed: Whether this rank ends by an error: then others may wait for it.

        Returns:
            Seconds after which this rank is done, at the latest.
        """

    @abstractmethod
    def close(self) -> None:
        """End every thread and every collective. It is called when nothing more is merged."""

    def finish(self) -> Iterator[HostWindow]:
        """Take part, after this rank's last window, as long as others need it.

        Yields:
            On rank 0, windows of what other ranks logged after its last one.
        """
        yield from ()

    def take_notes(self) -> list[tuple[int, bytes]]:
        """Return, on rank 0, the notes that came since the last call, each with its rank; one's own too."""
        notes, self._notes = self._notes, []
        return notes
