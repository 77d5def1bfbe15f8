"""Ranks that die, hang or leave: the others train on, the writer keeps what it has and names who is missing."""

import signal

import pytest
from jobs import Job, run_job
from programs import disturbed, exits_in_the_middle, stops_itself

SIZE = 4


def disturb(tmp_path, victim: int, number: int, config: dict):
    """Have all ranks train to the middle of the third window, disturb one, and have the others train to the end."""
    with Job(disturbed, SIZE, tmp_path, config) as job:
        job.wait_for("ready")
        job.signal(victim, number)
        if number == signal.SIGKILL:
            job.processes[victim].join()
        (tmp_path / "go").touch()
        for rank in set(range(SIZE)) - {victim}:
            job.wait_for(f"trained-{rank}")
        if number == signal.SIGSTOP:
            for rank in set(range(SIZE)) - {victim}:
                job.processes[rank].join(60)
            job.signal(victim, signal.SIGKILL)
        return job.outcomes()


def check(found: dict, missing: set[int]):
    """Eight steps hold the values of all ranks; those behind them hold the values of all but the missing."""
    for step in range(24):
        present = range(SIZE) if step < 8 else set(range(SIZE)) - missing
        assert found["sum", (), step] == sum(2.0**rank for rank in present), step
    for step in range(3, 24, 4):
        present = SIZE if step < 8 else SIZE - len(missing)
        assert sum(found["h", (), step][1]) == 4 * present


@pytest.mark.parametrize(
    ("victim", "missing", "words"), [(1, {1}, "rank 1"), (3, {3}, "rank 3"), (2, {2, 3}, "ranks 2-3")]
)
def test_a_rank_killed_in_the_middle_of_a_window(tmp_path, victim, missing, words):
    outcomes = disturb(tmp_path, victim, signal.SIGKILL, {"distributed_timeout": 60.0})
    assert outcomes[victim].exit_code == -signal.SIGKILL
    for rank in set(range(SIZE)) - {victim}:
        assert outcomes[rank].error is None
        assert outcomes[rank].exit_code == 0
    check(outcomes[0].result, missing)
    assert outcomes[0].said(f"window 2 and on: no values from {words}")
    parent = victim & (victim - 1)
    assert outcomes[parent].said(f"rank {victim} is gone")


def test_a_rank_that_hangs(tmp_path):
    outcomes = disturb(tmp_path, 1, signal.SIGSTOP, {"distributed_timeout": 1.0})
    for rank in (0, 2, 3):
        assert outcomes[rank].error is None
        assert outcomes[rank].exit_code == 0
    check(outcomes[0].result, {1})
    assert outcomes[0].said("rank 1 sent nothing in time: going on without rank 1")
    assert outcomes[0].said("window 2 and on: no values from rank 1")
    assert [line for line in outcomes[0].log if "no values from" in line] == ["window 2 and on: no values from rank 1"]


def test_a_rank_that_hangs_with_others_below_it(tmp_path):
    outcomes = disturb(tmp_path, 2, signal.SIGSTOP, {"distributed_timeout": 1.0})
    check(outcomes[0].result, {2, 3})
    assert outcomes[0].said("window 2 and on: no values from ranks 2-3")
    assert outcomes[3].error is None
    assert outcomes[3].exit_code == 0


def test_the_writer_killed_in_the_middle_of_a_window(tmp_path):
    outcomes = disturb(tmp_path, 0, signal.SIGKILL, {"distributed_timeout": 5.0})
    for rank in (1, 2, 3):
        assert outcomes[rank].error is None
        assert outcomes[rank].exit_code == 0
    assert outcomes[1].said("rank 0 is gone")
    assert outcomes[2].said("rank 0 is gone")


def test_a_rank_that_leaves_by_an_exception(tmp_path):
    outcomes = run_job(exits_in_the_middle, SIZE, tmp_path)
    found = outcomes[0].result
    assert found == {("sum", (), step): 15.0 if step <= 5 else 13.0 for step in range(12)}
    assert outcomes[0].said("rank 1 left the run before step 7")
    assert not outcomes[0].said("no values from")


def test_a_process_that_is_gone_without_a_word_after_its_windows(tmp_path):
    with Job(stops_itself, 2, tmp_path) as job:
        outcomes = job.outcomes()
    assert outcomes[0].error is None
    assert outcomes[0].said("rank 1 is gone")
