"""Backend that writes TensorBoard event files."""

import functools
import logging
import os
import re
import secrets
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from typing_extensions import override

from d9d_tracker.backend import RecordRun, RecordTracker
from d9d_tracker.base import RunConfig
from d9d_tracker.provider.claims import Claims
from d9d_tracker.provider.command_line import command
from d9d_tracker.provider.files import append, sync_folder
from d9d_tracker.provider.lock import hold, let_go
from d9d_tracker.provider.names import encodable
from d9d_tracker.record import Record

from . import events
from .config import TensorBoardConfig

_LOGGER = logging.getLogger("d9d_tracker")
_TITLE_BYTES = 64


class TensorBoardRun(RecordRun):
    """A run that is a folder of event files, one for every time it was opened.

    A series' tag is its name followed by its context, as ``loss/rank=0/stage=train``. Numbers are float32, all that
    TensorBoard shows; NaN and infinities are drawn as marks. A histogram keeps its edges, counts and moments; NaN and
    infinite elements appear, where there are any, as the scalars ``<name>/nan`` and ``<name>/inf``.

    What is logged collects in memory and reaches the file on ``flush``, in one piece followed by fsync. A flush that
    fails leaves the file as it was and keeps the values for the next one. A value logged again for the last flushed
    step replaces the former: an event that TensorBoard calls a purge makes readers forget that step, and what else it
    held is written anew. ``rewind`` purges likewise.
    """

    def __init__(self, folder: Path, properties: RunConfig, is_new: bool):
        super().__init__(folder.name)
        self._folder = folder
        self._properties = events.properties(properties, self.id)
        self._pending: dict[int, dict[str, Any]] = {}  # step and tag of what is not on disk yet
        self._written: dict[int, dict[str, Any]] = {}  # the same of the last step that is
        self._times: dict[int, float] = {}  # when the steps of both began
        self._claims = Claims(self.id, self._properties)
        self._purge_from: int | None = None
        self._file: int | None = None
        self._size = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(folder / ".writer", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            hold(self._lock, f"run {self.id!r} ({folder})")
            self._path = _next_file(folder)
            if is_new:
                self._pending[0] = dict(self._properties)
                self.sync()
        except BaseException:
            self._let_go()
            raise

    @functools.cached_property
    def sdk(self) -> Any:
        """A ``SummaryWriter`` of torch, whose events go to this run's file, with its next flush."""
        from .writer import Writer  # which imports torch

        return Writer(self._folder, self._put_value)

    def rewind(self, step: int) -> None:
        """Make readers forget what an earlier life of this run wrote at ``step`` or later."""
        super().rewind(step)
        self._pending = {earlier: values for earlier, values in self._pending.items() if earlier < step}
        self._written = {earlier: values for earlier, values in self._written.items() if earlier < step}
        if step <= 0:
            self._pending[0] = dict(self._properties)
        self._purge_from = step
        self.sync()

    @override
    def write_record(self, record: Record) -> None:
        if record.time is not None:
            self._times.setdefault(record.step, record.time)
        for tag, value in self._claims.parts(record):
            self._put_value(record.step, events.point(tag, value))

    def _put_value(self, step: int, value: Any) -> None:
        self._pending.setdefault(step, {})[value.tag] = value

    @override
    def sync(self) -> None:
        for step, values in self._written.items():
            if self._pending.get(step, {}).keys() & values.keys():
                self._pending[step] = {**values, **self._pending[step]}
                self._purge_from = step
        if not self._pending and self._purge_from is None:
            return
        purge = b"" if self._purge_from is None else events.purge(self._purge_from)
        data = purge + b"".join(
            events.points(step, values.values(), self._times.get(step)) for step, values in self._pending.items()
        )
        try:
            file = self._named_file()
            append(file, self._size, data)
        except OSError as error:
            fate = "lost with the closing run" if self._closed else "kept in memory for the next flush"
            message = f"{error.strerror}: {len(self._pending)} steps of run {self.id!r} are {fate}"
            raise OSError(error.errno, f"{message}. Free space, or bring the folder back", str(self._path)) from error
        self._size += len(data)
        self._purge_from = None
        if self._pending:
            last = max([*self._pending, *self._written])
            self._written = {last: {**self._written.get(last, {}), **self._pending.get(last, {})}}
            self._times = {step: began for step, began in self._times.items() if step == last}
            self._pending = {}

    def _named_file(self) -> int:
        """Return the file to write to, made if it is missing, with what it held before."""
        if self._file is not None and self._path.exists():
            return self._file
        content = events.file_start()
        if self._file is not None:
            content = os.pread(self._file, self._size, 0)
            _LOGGER.warning("run %r: its file had vanished and is written anew: %s", self.id, self._path)
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
    def release(self) -> None:
        try:
            self.sync()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self._file is not None:
            os.close(self._file)
        let_go(self._lock)


class TensorBoardTracker(RecordTracker[TensorBoardConfig]):
    """Opens runs that are one folder of event files each.

    Re-attaching to a run whose folder is gone starts it anew under the same id and logs a warning.
    """

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
        folder = self.config.log_dir.expanduser().absolute() / (run_id or self.new_id or self.make_id(properties))
        if run_id and folder.name != run_id:
            raise ValueError(
                f"the loaded state names the run {run_id!r}, which is not the name of a folder: load another"
            )
        is_new = not folder.exists()
        if run_id and is_new:
            _LOGGER.warning("run %r: its folder is gone and starts anew, without what it held: %s", run_id, folder)
        return TensorBoardRun(folder, properties, is_new)


def _next_file(folder: Path) -> Path:
    """Return the path of a file that TensorBoard reads after all others in a folder: it goes by their names."""
    earlier = sorted(path.name for path in folder.glob("events.out.tfevents.*"))
    second = int(time.time())
    if earlier:
        second = max(second, int(earlier[-1].split(".")[3]))
    return folder / f"events.out.tfevents.{second:010d}.{len(earlier):04d}.{socket.gethostname()}.d9d_tracker"
