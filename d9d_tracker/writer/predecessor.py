"""The writer of a training that was killed: it may still write to the run that the next life goes on with."""

import time
from contextlib import suppress

from d9d_tracker.provider.lock import lock_on_this_machine, unlock

ORPHAN_SECONDS = 20.0  # that a writer has, once its training is gone
_PATIENCE_SECONDS = 25.0


def lock_in_time(name: str) -> int:
    """Wait until a run has no other writer on this machine, and be its writer, by a lock for ``provider.lock.unlock``.

    ``RuntimeError`` if another one is still there after 25 seconds: it has a training that lives.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return lock_on_this_machine(f"writer {name}", f"run {name!r}")
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def wait_for_predecessor(name: str) -> None:
    """Wait as ``lock_in_time``, for who writes to a run without a writer."""
    with suppress(OSError):  # where there is no room for a lock, there was no writer
        unlock(lock_in_time(name))
