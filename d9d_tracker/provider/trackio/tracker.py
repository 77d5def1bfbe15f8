"""Backend that writes to Trackio."""

import functools
import hashlib
import json
import os
import secrets
import shlex
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from typing_extensions import override

from d9d_tracker.backend import RecordTracker
from d9d_tracker.base import RunConfig
from d9d_tracker.hparams import plain_hparams
from d9d_tracker.log import logger
from d9d_tracker.provider.command_line import command
from d9d_tracker.provider.lock import lock_on_this_machine, unlock_if_it_fails
from d9d_tracker.provider.locked_run import RowRun
from d9d_tracker.provider.names import encodable, storable
from d9d_tracker.provider.rebin import coarsen
from d9d_tracker.record import Histogram

from . import TrackioConfig

_BINS = 512  # as many as Trackio keeps
_RESERVED = ("project", "run", "timestamp", "step", "time", "metrics")


class TrackioRun(RowRun):
    """A run in Trackio's database, written by Trackio's own storage: one row for what is flushed of a step.

    A histogram is 512 bins at most, with edges of its own and its exact minimum, maximum and total; non-finite scalars
    are text. A row that comes again, after a failure that left it unknown whether it was stored, is ignored; a value
    that comes again takes the place of the one before.
    """

    def __init__(self, storage: Any, project: str, run_id: str, properties: RunConfig, group: str | None, lock: int):
        super().__init__(run_id, lock, _RESERVED)
        self._storage = storage
        self._project = project
        self._name = encodable(properties.name)
        self._started = time.time() if properties.started is None else properties.started
        self._stored = -1  # the last step that has a row
        created, described = _timestamp(self._started), encodable(properties.description)
        texts = {"_Created": created, "_Description": described, "_Group": encodable(group)}
        beside = {key: text for key, text in texts.items() if text is not None}
        self._config: dict[str, Any] | None = {**storable(plain_hparams(properties.hparams)), **beside}

    def go_on(self, known: dict[str, Any]) -> None:
        """Keep what an earlier life has stored beside the points, unless it is given again."""
        self._config = {**known, **(self._config or {}), **{key: known[key] for key in ("_Created",) if key in known}}
        with self._database() as database:
            ((last,),) = database.execute("SELECT MAX(step) FROM metrics WHERE run_id = ?", (self.id,))
        self._stored = -1 if last is None else last

    @functools.cached_property
    def sdk(self) -> Any:
        """A ``trackio.Run`` of this run: what is logged there has the step that it is given."""
        run = import_module("trackio.run").Run(
            url=None, project=self._project, client=None, name=self._name, run_id=self.id, initial_last_step=self.step
        )
        run._config_logged = True  # it is ours
        return run

    @override
    def rewind(self, step: int) -> None:
        super().rewind(step)
        self._stored = min(self._stored, step - 1)
        with self._database() as database:
            database.execute("DELETE FROM metrics WHERE run_id = ? AND step >= ?", (self.id, step))

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        path = self._storage.get_project_db_path(self._project)
        with closing(sqlite3.connect(path, timeout=30)) as database, database:
            yield database

    def _take_back(self) -> None:
        """Forget what is stored of values that are given again: of two rows alike, Trackio would keep the first."""
        again = {step: row for step, row in self._rows.items() if step <= self._stored}
        if not again:
            return
        with self._database() as database:
            for step, row in again.items():
                where = "FROM metrics WHERE run_id = ? AND step = ?"
                for number, stored in database.execute(f"SELECT id, metrics {where}", (self.id, step)).fetchall():
                    kept = {key: value for key, value in json.loads(stored).items() if key not in row}
                    if kept:
                        changed = json.dumps(kept).encode()
                        database.execute("UPDATE metrics SET metrics = ? WHERE id = ?", (changed, number))
                    else:
                        database.execute("DELETE FROM metrics WHERE id = ?", (number,))

    @override
    def add_hparams(self, hparams: Mapping[str, Any]) -> None:
        known = self._config or self._storage.get_run_config(self._project, self._name, run_id=self.id) or {}
        self._config = {**known, **storable(plain_hparams(hparams))}

    @override
    def cell(self, key: str, value: float | Histogram) -> Any:
        if not isinstance(value, Histogram):
            return value
        counts, edges = coarsen(value, _BINS)
        return {"_type": "trackio.histogram", "bins": edges.tolist(), "values": counts.tolist()}

    @override
    def sync(self) -> None:
        if not self._rows and self._config is None:
            return
        self._take_back()
        now = time.time()
        times = [self._times.get(step, now) for step in self._rows] or [self._started]
        self._storage.bulk_log(
            project=self._project,
            run=self._name,
            run_id=self.id,
            metrics_list=list(self._rows.values()) or [{}],
            steps=list(self._rows) or [self.step],
            timestamps=list(map(_timestamp, times)),
            config=self._config,
            log_ids=[f"{self.id}-{step}-{_digest(row)}" for step, row in self._rows.items()] or [f"{self.id}-config"],
        )
        self._stored = max([self._stored, *self._rows])
        self._rows, self._times, self._config = {}, {}, None

    @override
    def close_run(self) -> None:
        self.sync()
        if "sdk" in vars(self):
            self.sdk.finish()


class TrackioTracker(RecordTracker[TrackioConfig]):
    """Opens runs in Trackio's database; a step is written once, when it has ended."""

    amends = False
    is_heavy = True

    @override
    def how_to_open(self) -> str | None:
        show = command("trackio", "show", "--project", self.config.project)
        folder = self.config.dir and shlex.quote(str(self.config.dir.expanduser().absolute()))
        return f"TRACKIO_DIR={folder} {show}" if folder else show

    @override
    def make_id(self, properties: RunConfig) -> str:
        return secrets.token_hex(16)

    @override
    def open_run(self, properties: RunConfig, run_id: str | None) -> TrackioRun:
        storage = _storage(self.config.dir)
        storage.validate_project_name(self.config.project)
        new_id = run_id or self.new_id or self.make_id(properties)
        lock = lock_on_this_machine(new_id, f"Trackio run {new_id!r}")
        with unlock_if_it_fails(lock):
            storage.init_db(self.config.project)
            run = TrackioRun(storage, self.config.project, new_id, properties, self.config.group, lock)
            known = storage.get_run_config(self.config.project, run._name, run_id=new_id)
            if known is not None:
                run.go_on(known)
            elif run_id:
                logger.warning("run %r is not in Trackio's project %r: it starts anew", run_id, self.config.project)
            run.sync()
        return run


def _digest(row: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(sorted(row)).encode(), digest_size=8).hexdigest()


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _storage(folder: Path | None) -> Any:
    """Return Trackio's storage, which reads where it lies when it is imported."""
    if folder is not None:
        os.environ["TRACKIO_DIR"] = str(folder.expanduser().absolute())
    utils = import_module("trackio.utils")
    if folder is not None and Path(utils.TRACKIO_DIR) != folder.expanduser().absolute():
        raise ValueError(
            f"dir={str(folder)!r}: this process already writes to Trackio's folder {utils.TRACKIO_DIR}; use that one"
        )
    return import_module("trackio.sqlite_storage").SQLiteStorage
