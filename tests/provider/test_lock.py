"""One writer a run, also where a file system has no locks, and no file is left behind."""

import errno
import os
import tempfile
from pathlib import Path

import pytest

from d9d_tracker import log
from d9d_tracker.provider import files, lock


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(log, "_said", set())


def test_the_file_of_a_lock_is_short_whatever_the_run_is_called_and_removed(tmp_path: Path) -> None:
    file = lock.lock_on_this_machine("実験" * 500, "a run")
    (path,) = tmp_path.iterdir()
    assert len(path.name.encode()) < 80
    with pytest.raises(RuntimeError, match="another job"):
        lock.lock_on_this_machine("実験" * 500, "a run")
    assert path.exists()
    lock.unlock(file)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def removed_by_its_last_holder(path: Path, flags: int, mode: int = 0o777) -> int:
        file = opened(path, flags, mode)
        monkeypatch.setattr(os, "open", opened)
        Path(path).unlink()
        return file

    monkeypatch.setattr(os, "open", removed_by_its_last_holder)
    file = lock.lock_on_this_machine("run", "a run")
    with pytest.raises(RuntimeError, match="another job"):
        lock.lock_on_this_machine("run", "a run")
    lock.unlock(file)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_warned_of_once(
    number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(file: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock, "flock", flock)
    for name in ("one", "two"):
        lock.unlock(lock.lock_on_this_machine(name, f"run {name}"))
    assert caplog.text.count("has no locks") == 1


def test_other_errors_of_a_lock_surface(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: int, operation: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(lock, "flock", flock)
    with pytest.raises(OSError, match="input/output"):
        lock.lock_on_this_machine("one", "a run")


@pytest.mark.parametrize(("call", "number"), [("fsync", errno.EINVAL), ("open", errno.EACCES)])
def test_a_folder_whose_names_cannot_be_synced_is_warned_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    for _ in range(3):
        files.sync_folder(tmp_path)
    assert caplog.text.count("names cannot be synced") == 1
