"""A lock is lifted when its run is closed, also if that fails; what a rewind takes back of rows comes with its time."""

import os

import pytest

from d9d_tracker.provider.lock import lock_file, unlock
from d9d_tracker.provider.locked_run import LockedRun, RowRun
from d9d_tracker.record import Record


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


class Rows(RowRun):
    def cell(self, key, value):
        return f"{key}: {value}"


def lock_of(tmp_path):
    return os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)


def test_a_step_is_a_row_by_series_and_context_with_the_time_that_it_began(tmp_path):
    run = Rows("run", lock_of(tmp_path), ["_step"])
    run.write_record(Record("loss", 0, {}, 1.0, 10.0))
    run.write_record(Record("loss", 0, {"stage": "train"}, 2.0, 11.0))
    run.write_record(Record("_step", 1, {}, 3.0))
    assert run._rows == {
        0: {"loss": "loss: 1.0", "loss/stage=train": "loss/stage=train: 2.0"},
        1: {"_step~": "_step~: 3.0"},
    }
    assert run._times == {0: 10.0}
    run.close()


def test_a_rewind_forgets_rows_and_their_times(tmp_path):
    run = Rows("run", lock_of(tmp_path))
    for step in range(3):
        run.write_record(Record("loss", step, {}, 1.0, 10.0 + step))
    run.rewind(1)
    assert (list(run._rows), run._times) == ([0], {0: 10.0})
    run.write_record(Record("loss", 1, {}, 2.0, 20.0))
    assert run._times[1] == 20.0
    run.close()
