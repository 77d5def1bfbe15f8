"""A lock is lifted when its run is closed, also if that fails."""

import pytest

from d9d_tracker.provider.lock import lock_file, unlock
from d9d_tracker.provider.locked_run import LockedRun


class Failing(LockedRun):
    def write_record(self, record):
        raise NotImplementedError

    def close_run(self):
        raise OSError("the disk is full")


def test_the_lock_is_lifted_also_if_the_end_fails(tmp_path):
    path = tmp_path / "lock"
    run = Failing("run", lock_file(path, "the run"))
    with pytest.raises(RuntimeError, match="another job"):
        lock_file(path, "the run")
    with pytest.raises(OSError, match="full"):
        run.close()
    unlock(lock_file(path, "the run"))
