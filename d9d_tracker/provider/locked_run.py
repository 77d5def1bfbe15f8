"""A run that no other process writes to while it is open."""

from collections.abc import Iterable

from typing_extensions import override

from d9d_tracker.backend import RecordRun

from .claims import Claims
from .lock import let_go


class LockedRun(RecordRun):
    """A run with a lock, which is lifted when it is closed, and with names that are not those of its backend."""

    def __init__(self, run_id: str, lock: int | None, reserved: Iterable[str] = ()):
        super().__init__(run_id)
        self._lock = lock
        self._claims = Claims(run_id, reserved)

    def end(self) -> None:
        """Make everything durable, and tell the backend that the run is over. Only syncs by default."""
        self.sync()

    @override
    def release(self) -> None:
        try:
            self.end()
        finally:
            if self._lock is not None:
                let_go(self._lock)
