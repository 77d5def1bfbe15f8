"""What a backend has not accepted, kept on local disk until it does."""

import ctypes
import json
import os
import sqlite3
import threading
from collections.abc import Sequence
from itertools import starmap
from pathlib import Path
from typing import Any
from urllib.parse import quote
from weakref import WeakSet

from d9d_tracker.log import logger
from d9d_tracker.points import Contents, Points
from d9d_tracker.record import Histogram, Record

# The file is locked from the first access on, so that a second job finds it so.
_OPENING = """PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
CREATE TABLE IF NOT EXISTS windows (
    window INTEGER PRIMARY KEY, first INTEGER, last INTEGER, records INTEGER, names TEXT, bytes INTEGER, payload BLOB
);
CREATE TABLE IF NOT EXISTS run (id INTEGER PRIMARY KEY, description TEXT);"""


class DamagedError(Exception):
    """A kept window cannot be read, ever."""


class Backlog:
    """A durable queue of windows, one sqlite3 file per run, created when the first window needs it.

    Safe to use from several threads; every change is committed and synced to disk before the call returns. One process
    at a time: the file is locked from its first use until ``close``, or until the process dies. A forked child has no
    part in it. ``path`` is the file, whose name nothing else in its folder has; the description, plain JSON values, is
    what a process that knows nothing of the run needs to deliver it.
    """

    def __init__(self, folder: Path, name: str, max_bytes: int, description: dict[str, Any] | None = None):
        self.path = folder.expanduser().absolute() / f"{quote(name, safe='')}.sqlite3"
        self.max_bytes = max_bytes
        self._description = description or {}
        self._lock = threading.RLock()  # a signal handler may take a state meanwhile
        self._delivered = -1
        self._database: sqlite3.Connection | None = None
        _backlogs.add(self)

    def describe(self, **changes: Any) -> None:
        """Change the description, plain JSON values, also in the file if there is one."""
        with self._lock:
            self._description |= changes
            if self._database is not None:
                _write_description(self._database, self._description)

    def put(self, windows: Sequence[tuple[int, Points, Contents]]) -> list[int]:
        """Keep windows, all or none, by the numbers in whose order they are delivered; one may replace another.

        Returns the numbers of those that had to be dropped, oldest first, to stay within ``max_bytes``; also one of
        these if it is larger than that by itself. Raises ``OSError`` or ``sqlite3.Error`` if they cannot be written.
        """
        with self._lock, self._open() as database:  # one by one, so that a full disk ends it soon
            rows = starmap(_row, windows)
            database.executemany("INSERT OR REPLACE INTO windows VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            return self._drop_excess(database)

    def get(self, number: int) -> Points:
        """Return the points of a kept window; ``DamagedError`` if that cannot be read: its bytes are put aside."""
        payload: Any = b""
        try:
            with self._lock:
                ((payload,),) = self._open().execute("SELECT payload FROM windows WHERE window = ?", (number,))
            return _points_of_text(payload) if isinstance(payload, str) else Points.load(payload)
        except (OSError, MemoryError, RuntimeError, sqlite3.OperationalError):  # which may pass
            raise
        except Exception as error:
            words = f"window {number} of {self.path}: {error!r}"
            if payload:
                aside = self.path.with_suffix(f".{number}.damaged")
                aside.write_bytes(payload if isinstance(payload, bytes) else str(payload).encode())
                words = f"{words}; its bytes are put aside as {aside}"
            raise DamagedError(words) from error

    def remove(self, number: int) -> None:
        """Forget a window that was delivered, and those before it."""
        self._delivered = number
        self._delete("window <= ?", number)

    def forget_from(self, step: int) -> None:
        """Forget the windows that start at ``step`` or later: they will be logged again."""
        self._delete("first >= ?", step)

    def _delete(self, which: str, number: int) -> None:
        with self._lock:
            if self._exists():
                with self._open() as database:
                    database.execute(f"DELETE FROM windows WHERE {which}", (number,))

    def contents(self) -> dict[int, Contents]:
        """Return what is kept, by number, in order; raise ``RuntimeError`` if another process has the file open."""
        with self._lock:
            if not self._exists():
                return {}
            rows = self._open().execute("SELECT window, first, last, records, names FROM windows ORDER BY window")
            return {
                number: Contents(first, last, n, tuple(json.loads(names))) for number, first, last, n, names in rows
            }

    @property
    def description(self) -> dict[str, Any]:
        """What the file says about its run; empty if there is no file."""
        with self._lock:
            row = self._open().execute("SELECT description FROM run").fetchone() if self._exists() else None
        return {} if row is None else json.loads(row[0])

    def close(self) -> None:
        """Close the file, and delete it when nothing is left in it."""
        with self._lock:
            if self._database is None:
                return
            waiting = "SELECT COUNT(*) FROM windows WHERE window > ?"
            count = self._database.execute(waiting, (self._delivered,)).fetchone()[0]
            self._database.close()
            self._database = None
            if count == 0:
                self.path.unlink(missing_ok=True)

    def _exists(self) -> bool:
        return self._database is not None or self.path.exists()

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = self._connect()
        elif not self.path.exists():
            # The folder vanished: what was kept is still readable through the open file, and only through it.
            restored = self._connect()
            self._database.backup(restored)
            self._database.close()
            self._database = restored
        return self._database

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            database = _connect(self.path)
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            raise RuntimeError(
                f"the backlog {self.path} is in use: another job writes to this run; stop that job first"
            ) from error
        except sqlite3.DatabaseError as error:
            damaged = self.path.with_suffix(".damaged")
            self.path.replace(damaged)
            words = "the backlog %s is damaged (%s): it is put aside as %s, undelivered"
            logger.error(words, self.path, error, damaged)
            database = _connect(self.path)
        if self._description:
            _write_description(database, self._description)
        return database

    def _drop_excess(self, database: sqlite3.Connection) -> list[int]:
        dropped: list[int] = []
        excess = database.execute("SELECT TOTAL(bytes) FROM windows").fetchone()[0] - self.max_bytes
        while excess > 0:
            number, size = database.execute("SELECT window, bytes FROM windows ORDER BY window LIMIT 1").fetchone()
            database.execute("DELETE FROM windows WHERE window = ?", (number,))
            dropped.append(number)
            excess -= size
        return dropped


def _row(number: int, points: Points, what: Contents) -> tuple[Any, ...]:
    payload = points.dump()
    return number, what.first, what.last, what.records, json.dumps(what.names), len(payload), payload


def _connect(path: Path) -> sqlite3.Connection:
    # For its owner alone: a configuration may hold a password, as part of an address. SQLite's other files follow.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    path.chmod(0o600)
    database = sqlite3.connect(path, timeout=1.0, check_same_thread=False)
    try:
        database.executescript(_OPENING)
        database.execute("SELECT COUNT(names) FROM windows").fetchone()  # reads all but the points
    except BaseException:
        database.close()
        raise
    return database


def _write_description(database: sqlite3.Connection, description: dict[str, Any]) -> None:
    with database:
        database.execute("INSERT OR REPLACE INTO run VALUES (0, ?)", (json.dumps(description, default=repr),))


_backlogs: "WeakSet[Backlog]" = WeakSet()


def _forget_in_child() -> None:
    for backlog in _backlogs:
        if backlog._database is not None:
            # Closing the connection would delete the write-ahead log that the parent goes on with: it is never closed.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(backlog._database))
            backlog._database = None
        backlog._lock = threading.RLock()


os.register_at_fork(after_in_child=_forget_in_child)


def _points_of_text(text: str) -> Points:
    """Return what version 0.2.0 and older kept of a window: its records, as JSON."""
    items = json.loads(text)
    for item in items:
        if isinstance(item["value"], dict):
            item["value"] = Histogram(**item["value"])
    return Points.of([Record(**item) for item in items])
