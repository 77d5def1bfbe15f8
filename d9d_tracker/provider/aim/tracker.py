"""Backend that writes to an Aim repository."""

import secrets
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import aim
from aim.sdk.configs import get_aim_repo_name
from aim.sdk.repo_utils import get_repo
from aim.sdk.utils import clean_repo_path
from aimrocks.errors import RocksIOError
from psutil import Process
from typing_extensions import override

from d9d_tracker.backend import RecordTracker
from d9d_tracker.base import RunConfig
from d9d_tracker.hparams import plain_hparams
from d9d_tracker.log import logger
from d9d_tracker.provider.command_line import command
from d9d_tracker.provider.lock import lock_file, unlock
from d9d_tracker.provider.locked_run import LockedRun
from d9d_tracker.provider.names import storable
from d9d_tracker.provider.rebin import parts_of, rebin
from d9d_tracker.record import Histogram, Record

from . import AimConfig
from .full_disk import abandon, check_room, reopen
from .rewind import rewind
from .system_params import system_params

_BINS = 64
_CHOOSING = threading.Lock()  # the hash of a new run


def _hparams(hparams: Mapping[str, Any]) -> Any:
    """Return hyperparameters as Aim takes them: it refuses integers beyond 64 bits, lone surrogates and empty keys."""
    return storable(plain_hparams(hparams), finite=False, empty_key="(empty)")


def _get_repo(path: str) -> Any:
    """Open the repository, made where there is none; a kill may have come while it was made, before it held any run."""
    folder = Path(clean_repo_path(path), get_aim_repo_name())
    version = folder / "VERSION"
    if folder.is_dir() and not (folder / "meta" / "chunks").exists() and not (version.exists() and version.read_text()):
        version.unlink(missing_ok=True)  # Aim cannot read an empty one
        return aim.Repo.from_path(path, init=True)
    return get_repo(path)


def _has(repo: Any, run_id: str) -> bool:
    """Tell whether a repository has a run, now: what Aim says of a local one is half a second old."""
    return repo.run_exists(run_id) if repo.is_remote_repo else Path(repo.path, "meta", "chunks", run_id).exists()


class AimRun(LockedRun):
    """An open run of Aim, which stores each value when it is logged: a killed process loses nothing.

    Logging the same series and step again overwrites the point. A histogram is stored as 64 equal bins between its
    exact minimum and maximum, with an exact total; non-finite scalars as they are. ``flush`` makes all survive a
    failing machine.

    Attributes:
        sdk: Aim's own run.
    """

    def __init__(self, run: aim.Run, lock: int | None, open_again: Callable[[], aim.Run]):
        super().__init__(run.hash, lock)
        self.sdk: Any = run  # an aim.Run, of which more is used than it shows
        self._open_again = open_again
        self._torn = False

    @override
    def add_hparams(self, hparams: Mapping[str, Any]) -> None:
        self.sdk["hparams"] = {**self.sdk.get("hparams", {}), **_hparams(hparams)}

    @override
    def write_record(self, record: Record) -> None:
        for suffix, value in parts_of(record.value):
            if isinstance(value, Histogram):
                counts, low, high = rebin(value, _BINS)
                self._track(aim.Distribution.from_histogram(counts, (low, high)), record, suffix)
            else:
                self._track(float(value), record, suffix)

    def _track(self, value: float | aim.Distribution, record: Record, suffix: str) -> None:
        name, began = self._names.name(record.name, suffix), record.time or time.time()
        self._mend()
        try:
            # What Run.track does, which would take the moment of the call for the time.
            self.sdk._tracker._track(value, began, name, record.step, context=dict(record.context))
        except RocksIOError as error:
            self._torn = True
            raise OSError(
                f"Aim could not store {name!r} at step {record.step} in {self.sdk.repo.path}: {error}"
            ) from error

    def _mend(self) -> None:
        if self._torn:
            self.sdk = reopen(self.sdk, self._open_again)
            self._torn = False
            # Takes back no step, but the half of a point that was stored: Aim would pair all later values of its series
            # with wrong steps.
            rewind(self.sdk, sys.maxsize)

    def rewind(self, step: int) -> None:
        """Delete what an earlier life wrote at ``step`` or later, and what its death cut in half; not on a server."""
        super().rewind(step)
        if self.sdk.repo.is_remote_repo:
            words = "run %r: points at step %d or later that are not logged again stay on the server"
            logger.warning(words, self.id, step)
            return
        rewind(self.sdk, step)
        self.sync()

    @override
    def sync(self) -> None:
        if self.sdk.repo.is_remote_repo:
            self.sdk.repo._client.get_queue().wait_for_finish()
            return
        self._mend()
        for container in ("meta", "seqs"):
            self.sdk.repo.request_container(container, self.id, read_only=False).db.flush_wal(True)

    @override
    def close_run(self) -> None:
        try:
            if not self.sdk.repo.is_remote_repo:
                check_room(Path(self.sdk.repo.path))
            self.sync()
        except OSError:
            abandon(self.sdk)
            raise
        self.sdk.close()
        # It would keep RocksDB's files open for writing, and a reader in this process that spells the path
        # differently would open them a second time, which damages them.
        del self.sdk


class AimTracker(RecordTracker[AimConfig]):
    """Opens runs in an Aim repository; one whose writer was killed shows in ``aim up`` once that has indexed it."""

    is_heavy = True

    @override
    def __init__(self, config: AimConfig):
        super().__init__(config)
        self.shows_terminal = config.capture_terminal_logs

    @override
    def how_to_open(self) -> str | None:
        return command("aim", "up", "--repo", self.config.repo)

    @override
    def make_id(self, properties: RunConfig) -> str:
        return secrets.token_hex(12)  # as Aim's own

    @override
    def open_run(self, properties: RunConfig, run_id: str | None) -> AimRun:
        repo = _get_repo(self.config.repo)
        # Aim remembers the list of runs for half a second, in which the run may have been born.
        repo._all_run_hashes.cache_clear()
        if run_id is not None and not _has(repo, run_id):
            logger.warning("run %r is gone from Aim repository %s: starting another", run_id, self.config.repo)
            run_id, self.new_id = None, self.new_id or self.make_id(properties)
        if run_id is None and self.new_id is not None and _has(repo, self.new_id):
            run_id = self.new_id
        with ExitStack() as undo:
            lock = self._take_lock(repo, str(run_id or self.new_id), undo)
            run = self._open_aim(repo, run_id)
            undo.callback(run.close)
            run.name = properties.name
            # A run that goes on keeps what is not given again.
            if run_id is None or properties.description is not None:
                run.description = properties.description
            if run_id is None or properties.hparams:
                run["hparams"] = _hparams(properties.hparams)
            undo.pop_all()
        return AimRun(run, lock, partial(self._open_aim, repo, run.hash))

    def _open_aim(self, repo: Any, run_id: str | None) -> aim.Run:
        if self.training is not None:  # whose use of the processor and the memory it is about
            resources: Any = import_module("aim.ext.resource.tracker")
            resources.Process = partial(Process, self.training)
        maker = "aim.sdk.base_run.generate_run_hash"  # Aim has no parameter for the hash of a new run
        ours = mock.patch(maker, return_value=self.new_id) if self.new_id else nullcontext()
        try:
            with _CHOOSING, ours, warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="pkg_resources is deprecated")  # Aim needs it
                run = aim.Run(
                    run_id,
                    repo=repo,
                    log_system_params=False,  # Aim would store secrets among them
                    capture_terminal_logs=self.config.capture_terminal_logs,
                    system_tracking_interval=self.config.system_tracking_interval,
                )
        except RocksIOError as error:
            raise RuntimeError(
                f"Aim cannot open run {run_id!r} in {self.config.repo} for writing: if another program writes to it, "
                f"close it there ({error})"
            ) from error
        if self.config.log_system_params:
            run["__system_params"] = system_params()
        # Aim's optional queue (AIM_ENABLE_TRACKING_THREAD) would lose what fails in it, and stop, without a word.
        run._tracker._non_blocking = False
        return run

    def _take_lock(self, repo: Any, run_id: str, undo: ExitStack) -> int | None:
        """Keep other writers away.

        Aim's own lock does not: recent versions of filelock take its file for a leftover two seconds after it was
        written, whether its writer lives or not. RocksDB refuses a second writer, but only after Aim has removed the
        first one's marks. If another process has got a killed writer's id, Aim honours the lock that this one left.
        """
        if repo.is_remote_repo:
            return None
        locks = Path(repo.path, "locks")
        lock = lock_file(locks / f"{run_id}.d9d_tracker", f"run {run_id!r} in Aim repository {self.config.repo}")
        undo.callback(unlock, lock)
        (locks / f"{run_id}.softlock").unlink(missing_ok=True)
        return lock
