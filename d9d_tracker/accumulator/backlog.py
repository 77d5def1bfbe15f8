"""What a backend has not accepted, kept on local disk until it does."""

import json
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from d9d_tracker.record import Histogram, Record


class Backlog:
    """A durable queue of windows, one sqlite3 file per run, created when the first window needs it.

    Safe to use from several threads; every change is committed and synced to disk before the call returns.

    Attributes:
        path: The file.
    """

    def __init__(self, folder: Path, run_id: str, max_bytes: int):
        self.path = folder / f"{quote(run_id, safe='')}.sqlite3"
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None

    def put(self, index: int, records: list[Record]) -> list[tuple[int, int]]:
        """Keep a window, or replace it.

        Args:
            index: Index of the window; windows are delivered in this order.
            records: Its records, in the order of their steps.

        Returns:
            What had to be dropped, oldest first, for the queue to stay below ``max_bytes``: window index and number of
            records of each.
        """
        payload = json.dumps([_encode(record) for record in records])
        with self._lock:
            database = self._open()
            with database:
                database.execute(
                    "INSERT OR REPLACE INTO windows VALUES (?, ?, ?, ?)",
                    (index, records[0].step, len(records), payload),
                )
                return self._drop_excess(database, index)

    def remove(self, index: int) -> None:
        """Forget a window that was delivered."""
        with self._lock:
            if self._database is not None:
                with self._database:
                    self._database.execute("DELETE FROM windows WHERE window = ?", (index,))

    def forget_from(self, step: int) -> None:
        """Forget the windows that start at ``step`` or later: they will be logged again."""
        with self._lock:
            if self._database is not None or self.path.exists():
                with self._open() as database:
                    database.execute("DELETE FROM windows WHERE first_step >= ?", (step,))

    def windows(self) -> Iterator[tuple[int, list[Record]]]:
        """Yield the index and the records of every kept window, in order."""
        with self._lock:
            if self._database is None and not self.path.exists():
                return
            rows = self._open().execute("SELECT window, payload FROM windows ORDER BY window").fetchall()
        for index, payload in rows:
            yield index, [_decode(item) for item in json.loads(payload)]

    def close(self) -> None:
        """Close the file, and delete it when nothing is left in it."""
        with self._lock:
            if self._database is None:
                return
            is_empty = self._database.execute("SELECT COUNT(*) FROM windows").fetchone()[0] == 0
            self._database.close()
            self._database = None
            if is_empty:
                self.path.unlink(missing_ok=True)

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(self.path, check_same_thread=False)
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            with database:
                database.execute(
                    "CREATE TABLE IF NOT EXISTS windows "
                    "(window INTEGER PRIMARY KEY, first_step INTEGER, records INTEGER, payload TEXT)"
                )
            self._database = database
        return self._database

    def _drop_excess(self, database: sqlite3.Connection, newest: int) -> list[tuple[int, int]]:
        dropped: list[tuple[int, int]] = []
        rows = database.execute("SELECT window, records, LENGTH(payload) FROM windows ORDER BY window").fetchall()
        size = sum(row[2] for row in rows)
        for index, count, length in rows:
            if size <= self._max_bytes or index == newest:
                break
            database.execute("DELETE FROM windows WHERE window = ?", (index,))
            dropped.append((index, count))
            size -= length
        return dropped


def _encode(record: Record) -> dict[str, Any]:
    value: Any = record.value
    if isinstance(value, Histogram):
        value = {field: getattr(value, field) for field in Histogram.__slots__}
        value |= {"edges": value["edges"].tolist(), "counts": value["counts"].tolist()}
    return {"name": record.name, "step": record.step, "context": dict(record.context), "value": value}


def _decode(item: dict[str, Any]) -> Record:
    value = item["value"]
    if isinstance(value, dict):
        edges = np.array(value.pop("edges"), dtype=np.float64)
        counts = np.array(value.pop("counts"), dtype=np.int64)
        value = Histogram(edges=edges, counts=counts, **value)
    return Record(item["name"], item["step"], item["context"], value)
