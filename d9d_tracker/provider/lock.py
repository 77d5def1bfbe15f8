"""One writer a run: an exclusive lock that the system lifts when its holder dies, however it dies."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from d9d_tracker.log import warn_once

_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
_HELD: dict[int, Path | None] = {}  # descriptors, and what is removed when the lock is lifted


def hold(file: int, what: str, remove: Path | None = None) -> None:
    """Lock an open file for this run alone, without waiting; warn once where the file system has no locks."""
    try:
        flock(file, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        raise RuntimeError(
            f"{what} is being written by another job: stop that job, or close the run if it is one of this process; or "
            "do not load the state of its run, to start a new one"
        ) from None
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        words = "%s: the file system has no locks (%s), so that two jobs could write to one run"
        warn_once("no locks", words, what, error.strerror)
    _HELD[file] = remove


def lock_file(path: Path, what: str, remove: bool = False) -> int:
    """Open a file, made if missing, lock it, and return its descriptor, for ``unlock``."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600 if remove else 0o666)
    with unlock_if_it_fails(file):
        hold(file, what, path if remove else None)
    return file


def lock_on_this_machine(run_id: str, what: str) -> int:
    """Keep other writers on this machine away from a run that has no folder to put a lock in."""
    digest = hashlib.blake2b(run_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    path = Path(tempfile.gettempdir(), f"d9d_tracker-{os.getuid()}-{digest}.lock")
    while True:
        file = lock_file(path, what, remove=True)
        with unlock_if_it_fails(file):
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                return file
        _HELD[file] = None  # its last holder has removed it meanwhile, and another may lie in its place
        unlock(file)


def unlock(file: int) -> None:
    """Close a file, which lifts its lock."""
    path = _HELD.pop(file, None)
    if path is not None:
        path.unlink(missing_ok=True)  # while the lock is held: whoever waits for it looks whether it is still there
    os.close(file)


@contextmanager
def unlock_if_it_fails(file: int) -> Iterator[None]:
    """Let go of a file if the block, which opens what it locks, fails."""
    try:
        yield
    except BaseException:
        unlock(file)
        raise


def _unlock_in_child() -> None:
    # A forked data loader worker would keep the lock for as long as it survives its killed parent.
    for file in list(_HELD):
        _HELD[file] = None
        unlock(file)


os.register_at_fork(after_in_child=_unlock_in_child)
