"""Backend that writes TensorBoard event files."""

import functools
import os
import re
import secrets
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from typing_extensions import override

from d9d_tracker.backend import RecordTracker
from d9d_tracker.base import RunConfig
from d9d_tracker.log import logger
from d9d_tracker.provider.command_line import command
from d9d_tracker.provider.files import append, not_stored, path_of_run, sync_folder
from d9d_tracker.provider.lock import lock_file, unlock_if_it_fails
from d9d_tracker.provider.locked_run import RowRun
from d9d_tracker.provider.names import encodable
from d9d_tracker.record import Histogram

from . import TensorBoardConfig, events

_TITLE_BYTES = 64
_FILES = "events.out.tfevents.*"


class TensorBoardRun(RowRun):
    """A run that is a folder of event files, one for every time it was opened.

    Numbers are float32, all that TensorBoard shows; NaN and infinities are drawn as marks. A histogram keeps its edges,
    counts and moments. A flush is one piece followed by fsync. A value logged again for the last flushed step replaces
    the former: an event that TensorBoard calls a purge makes readers forget that step, and what else it held is written
    anew.
    """

    def __init__(self, folder: Path, properties: RunConfig, is_new: bool, lock: int):
        self._folder = folder
        self._properties = events.properties(properties, folder.name)
        super().__init__(folder.name, lock, reserved=self._properties)
        self._written: dict[int, dict[str, Any]] = {}  # the last row that is on disk
        self._purge_from: int | None = None
        self._path = _next_file(folder)
        self._file: int | None = None
        self._size = 0
        if is_new:
            self._rows[0] = dict(self._properties)
            try:
                self.sync()
            except BaseException:
                self._close_file()
                raise

    @functools.cached_property
    def sdk(self) -> Any:
        """A ``SummaryWriter`` of torch, whose events go to this run's file, with its next flush."""
        from .writer import Writer  # which imports torch

        return Writer(self._folder, self._put_value)

    def rewind(self, step: int) -> None:
        """Make readers forget what an earlier life of this run wrote at ``step`` or later."""
        super().rewind(step)
        self._written = {earlier: row for earlier, row in self._written.items() if earlier < step}
        if step <= 0:
            self._rows[0] = dict(self._properties)
        self._purge_from = step
        self.sync()

    @override
    def cell(self, key: str, value: float | Histogram) -> Any:
        return events.point(key, value)

    def _put_value(self, step: int, value: Any) -> None:
        self._rows.setdefault(step, {})[value.tag] = value

    @override
    def sync(self) -> None:
        for step, row in self._written.items():
            if self._rows.get(step, {}).keys() & row.keys():
                self._rows[step] = {**row, **self._rows[step]}
                self._purge_from = step
        if not self._rows and self._purge_from is None:
            return
        purge = b"" if self._purge_from is None else events.purge(self._purge_from)
        rows = [events.points(step, row.values(), self._times.get(step)) for step, row in self._rows.items()]
        data = purge + b"".join(rows)
        try:
            append(self._named_file(), self._size, data)
        except OSError as error:
            what = f"{len(self._rows)} steps of run {self.id!r}"
            raise not_stored(error, what, self._closed, self._path) from error
        self._size += len(data)
        self._purge_from = None
        if self._rows:
            last = max([*self._rows, *self._written])
            self._written = {last: {**self._written.get(last, {}), **self._rows.get(last, {})}}
            self._times = {step: began for step, began in self._times.items() if step == last}
            self._rows = {}

    def _named_file(self) -> int:
        """Return the file to write to, made if it is missing, with what it held before."""
        if self._file is not None and self._path.exists():
            return self._file
        content = events.file_start()
        if self._file is not None:
            content = os.pread(self._file, self._size, 0)
            logger.warning("run %r: its file had vanished and is written anew: %s", self.id, self._path)
        self._folder.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            append(file, 0, content)
            sync_folder(self._folder)
            sync_folder(self._folder.parent)
        except BaseException:
            os.close(file)
            self._path.unlink(missing_ok=True)
            raise
        if self._file is not None:
            os.close(self._file)
        self._file, self._size = file, len(content)
        return file

    @override
    def close_run(self) -> None:
        try:
            self.sync()
        finally:
            self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)


class TensorBoardTracker(RecordTracker[TensorBoardConfig]):
    """Opens runs that are one folder of event files each."""

    @override
    def how_to_open(self) -> str | None:
        return command("tensorboard", "--logdir", self.config.log_dir)

    @override
    def make_id(self, properties: RunConfig) -> str:
        title = re.sub(r"[^\w.-]+", "-", encodable(properties.name)).strip(".-")
        title = title.encode()[:_TITLE_BYTES].decode(errors="ignore")  # a folder's name has 255 bytes
        return f"{title}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(8)}".lstrip("-")

    @override
    def open_run(self, properties: RunConfig, run_id: str | None) -> TensorBoardRun:
        new_id = run_id or self.new_id or self.make_id(properties)
        folder = path_of_run(self.config.log_dir, new_id, run_id is not None)
        folder.mkdir(parents=True, exist_ok=True)
        # There may be no more than the start of a file, if the disk was full when the run was opened first.
        is_new = not any(path.stat().st_size > len(events.file_start()) for path in folder.glob(_FILES))
        lock = lock_file(folder / ".writer", f"run {new_id!r} ({folder})")
        with unlock_if_it_fails(lock):
            return TensorBoardRun(folder, properties, is_new, lock)


def _next_file(folder: Path) -> Path:
    """Return the path of a file that TensorBoard reads after all others in a folder: it goes by their names."""
    earlier = sorted(path.name for path in folder.glob(_FILES))
    second = int(time.time())
    if earlier:
        second = max(second, int(earlier[-1].split(".")[3]))
    return folder / f"events.out.tfevents.{second:010d}.{len(earlier):04d}.{socket.gethostname()}.d9d_tracker"
