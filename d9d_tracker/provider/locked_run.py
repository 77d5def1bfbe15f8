"""A run that no other process writes to while it is open."""

from collections.abc import Iterable

from typing_extensions import override

from d9d_tracker.backend import RecordRun

from .lock import unlock
from .series_names import SeriesNames


class LockedRun(RecordRun):
    """A run with a lock, which is lifted when it is closed, and with names that are not those of its backend."""

    def __init__(self, run_id: str, lock: int | None, reserved: Iterable[str] = ()):
        super().__init__(run_id)
        self._lock = lock
        self._names = SeriesNames(run_id, reserved)

    def close_run(self) -> None:
        """Make everything durable, and tell the backend that the run is over. Only syncs by default."""
        self.sync()

    @override
    def release(self) -> None:
        try:
            self.close_run()
        finally:
            if self._lock is not None:
                unlock(self._lock)
