"""Runs that no other process writes to while they are open; some take a step as a row."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

from typing_extensions import override

from d9d_tracker.backend import RecordRun
from d9d_tracker.record import Histogram, Record

from .lock import unlock
from .names import flat_name
from .rebin import parts_of
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


class RowRun(LockedRun):
    """Collects a row for each step, which ``sync`` stores: a key for each series and context, and parts of it."""

    def __init__(self, run_id: str, lock: int, reserved: Iterable[str] = ()):
        super().__init__(run_id, lock, reserved)
        self._rows: dict[int, dict[str, Any]] = {}  # what is not stored yet, by step and key
        self._times: dict[int, float] = {}  # when steps began, in seconds since the epoch

    @abstractmethod
    def cell(self, key: str, value: float | Histogram) -> Any:
        """Return a number, or a histogram of at least one finite value, as the backend takes it."""

    @override
    def write_record(self, record: Record) -> None:
        if record.time is not None:
            self._times.setdefault(record.step, record.time)
        row = self._rows.setdefault(record.step, {})
        for suffix, value in parts_of(record.value):
            key = flat_name(self._names.name(record.name, suffix), record.context)
            row[key] = self.cell(key, value)

    @override
    def rewind(self, step: int) -> None:
        super().rewind(step)
        self._rows = {earlier: row for earlier, row in self._rows.items() if earlier < step}
        self._times = {earlier: began for earlier, began in self._times.items() if earlier < step}
