"""One writer a run: an exclusive lock that the system lifts when its holder dies, however it dies."""

import os
import tempfile
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from urllib.parse import quote

_HELD: set[int] = set()


def hold(file: int, what: str) -> None:
    """Lock an open file for this run alone, without waiting.

    Args:
        file: Descriptor of the file; ``let_go`` closes it and so lifts the lock.
        what: What is locked, for the error.

    Raises:
        RuntimeError: If another process, or another descriptor of this one, holds the lock.
    """
    try:
        flock(file, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        raise RuntimeError(
            f"{what} is being written by another job: stop that job, or do not load the state of its run, to start a "
            "new one"
        ) from None
    _HELD.add(file)


def lock_on_this_machine(run_id: str, what: str) -> int:
    """Keep other writers on this machine away from a run that has no folder to put a lock in.

    Args:
        run_id: The backend's identity of the run.
        what: What is locked, for the error.

    Returns:
        Descriptor of the lock, for ``let_go``.

    Raises:
        RuntimeError: If another process, or another run of this one, holds the lock.
    """
    path = Path(tempfile.gettempdir(), f"d9d_tracker-{os.getuid()}-{quote(run_id, safe='')}.lock")
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        hold(file, what)
    except BaseException:
        let_go(file)
        raise
    return file


def let_go(file: int) -> None:
    """Close a file, which lifts its lock.

    Args:
        file: Its descriptor.
    """
    _HELD.discard(file)
    os.close(file)


def _let_go_in_child() -> None:
    # A forked data loader worker would keep the lock for as long as it survives its killed parent.
    for file in list(_HELD):
        let_go(file)


os.register_at_fork(after_in_child=_let_go_in_child)
