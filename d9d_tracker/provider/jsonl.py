"""Backend that appends one JSON object a line to one file a run: no server, no SDK, readable by anything."""

import errno
import math
import os
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from typing_extensions import override

from d9d_tracker.backend import RecordRun, RecordTracker
from d9d_tracker.base import RunConfig
from d9d_tracker.config import TrackerConfig
from d9d_tracker.log import logger
from d9d_tracker.points import Points
from d9d_tracker.record import Record

from .command_line import command
from .files import append, not_stored, path_of_run, sync_folder
from .jsonl_format import end_line, hparams_line, points_lines, record_line, run_line, whole_lines
from .lock import hold, lock_file, unlock, unlock_if_it_fails


class JsonlTrackerConfig(TrackerConfig):
    """Configuration of the backend that writes JSON lines.

    Attributes:
        provider: Discriminator, always ``"jsonl"``.
        path: Folder of the runs, created if missing. Each run is one file ``<run id>.jsonl`` in it.
    """

    provider: Literal["jsonl"] = "jsonl"
    path: Path


class JsonlRun(RecordRun):
    """A run that is one file, to which lines are appended on ``flush``, in one piece followed by fsync.

    Steps go back within the file only where a value was logged for a step that was over, or a line corrects one of the
    last step: for one series and step, readers take the last line. Re-attaching removes a line that a kill cut in half.
    """

    def __init__(self, path: Path, run_id: str, properties: RunConfig):
        super().__init__(run_id)
        self._path = path
        self._ended = properties.ended
        self._pending: list[bytes] = []
        self._size = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = lock_file(path, f"run {run_id!r} ({path})")
        with unlock_if_it_fails(self._file):
            self._cut_before(math.inf)
            if not self._size:
                self._pending.append(run_line(run_id, properties))
                self.sync()
                sync_folder(path.parent)
                sync_folder(path.parent.parent)

    @override
    def write_record(self, record: Record) -> None:
        self._pending.append(record_line(record))

    @override
    def write_columns(self, points: Points) -> None:
        self._pending.append(points_lines(points))

    @override
    def add_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._pending.append(hparams_line(hparams))

    @override
    def sync(self) -> None:
        if not self._pending:
            return
        data = b"".join(self._pending)
        try:
            self._check_name()
            append(self._file, self._size, data)
        except OSError as error:
            what = f"{len(self._pending)} lines of run {self.id!r}"
            raise not_stored(error, what, self._closed, self._path) from error
        self._pending.clear()
        self._size += len(data)

    def _check_name(self) -> None:
        """Refuse to write where nobody would find it: to a file whose name is gone or is another file's by now."""
        if not self._path.exists():
            self._restore()
        elif not os.path.samestat(os.fstat(self._file), self._path.stat()):
            raise FileExistsError(errno.EEXIST, "Another file has taken the name of the run's file")

    def _restore(self) -> None:
        """Write the whole file anew from the one that lost its name."""
        with open(os.dup(self._file), "rb") as nameless:
            nameless.seek(0)
            content = nameless.read(self._size)
        draft = self._path.with_suffix(".restored")
        file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            hold(file, f"run {self.id!r} ({draft})")
            append(file, 0, content)
            draft.rename(self._path)
        except BaseException:
            draft.unlink(missing_ok=True)
            unlock(file)
            raise
        unlock(self._file)
        self._file = file
        sync_folder(self._path.parent)
        logger.warning("run %r: its file had vanished and was written anew with all it held: %s", self.id, self._path)

    def rewind(self, step: int) -> None:
        """Take the lines of ``step`` or later out of the file, and wait until that is on disk."""
        self.sync()
        self._cut_before(step)

    def _cut_before(self, step: float) -> None:
        data = self._path.read_bytes()
        begin = self._size = self.step = 0
        is_cut = False
        for end, fields in whole_lines(data, self._path):
            of = fields.get("step", -1)
            is_end = fields["type"] == "end"  # which it is no longer
            is_cut = is_cut or is_end or of >= step
            if not is_cut:
                self._size, self.step = end, max(of, self.step)
            elif of < step and not is_end:  # hyperparameters, or a point of a step that was over
                self._pending.append(data[begin:end])
            begin = end
        os.ftruncate(self._file, self._size)
        os.fsync(self._file)

    @override
    def release(self) -> None:
        self._pending.append(end_line(self._error, self._ended))
        try:
            self.sync()
        finally:
            unlock(self._file)


class JsonlTracker(RecordTracker[JsonlTrackerConfig]):
    """Opens runs that are one file of JSON lines each."""

    @override
    def make_id(self, properties: RunConfig) -> str:
        return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(8)}"

    @override
    def open_run(self, properties: RunConfig, run_id: str | None) -> JsonlRun:
        new_id = run_id or self.new_id or self.make_id(properties)
        path = path_of_run(self.config.path, new_id, run_id is not None, ".jsonl")
        return JsonlRun(path, new_id, properties)

    @override
    def how_to_open(self) -> str | None:
        path = self.config.path.expanduser() / f"{self.run_id}.jsonl"
        return command("python", "-m", "d9d_tracker", "show", path)
