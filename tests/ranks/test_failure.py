"""Ranks that die, hang or leave: the others train on, the writer keeps what it has and names who is missing."""

import signal

import pytest
from jobs import Job, run_job
from programs import dies_before_it_hears, disturbed, exits_in_the_middle, opens_again_after_a_loss, stops_itself

from tests import scripts

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


def check(outcomes, victim: int):
    """Eight steps hold the values of all ranks; those behind them lack the victim's."""
    found = outcomes[0].result
    for step in range(24):
        assert found["sum", (), step] == 2.0**SIZE - 1 - (2.0**victim if step >= 8 else 0.0), step
    for step in range(3, 24, 4):
        assert sum(found["h", (), step][1]) == 4 * (SIZE - (step >= 8))
    for rank in set(range(SIZE)) - {victim}:
        assert outcomes[rank].error is None
        assert outcomes[rank].exit_code == 0
        assert outcomes[rank].result["unread"] == 0
    said = [line for line in outcomes[0].log if line.startswith(f"no values from rank {victim} (")]
    assert len(said) == 1
    assert "from step 8 on, the run goes on without" in said[0]
    assert outcomes[0].result["missing"] == [f"rank {victim}: from step 8 on"]


@pytest.mark.parametrize("victim", [1, 2, 3])
def test_a_rank_killed_in_the_middle_of_a_window(tmp_path, victim):
    outcomes = disturb(tmp_path, victim, signal.SIGKILL, {})
    assert outcomes[victim].exit_code == -signal.SIGKILL
    check(outcomes, victim)


def test_a_rank_killed_before_it_hears_that_its_window_has_arrived(tmp_path):
    with Job(dies_before_it_hears, 3, tmp_path) as job:
        outcomes = job.outcomes()
    assert [outcome.exit_code for outcome in outcomes] == [0, 0, -signal.SIGKILL]
    assert outcomes[0].result == {("sum", (), step): 7.0 if step < 8 else 3.0 for step in range(16)}


@pytest.mark.parametrize("victim", [1, 2])
def test_a_rank_that_hangs(tmp_path, victim):
    outcomes = disturb(tmp_path, victim, signal.SIGSTOP, {"distributed_timeout": 2.0})
    check(outcomes, victim)


def test_the_writer_killed_in_the_middle_of_a_window(tmp_path):
    outcomes = disturb(tmp_path, 0, signal.SIGKILL, {"flush_timeout": 3.0})
    for outcome in outcomes[1:]:
        assert outcome.error is None
        assert outcome.exit_code == 0
        said = [line for line in outcome.log if "is not in the run" in line]
        assert len(said) == 1
        assert said[0].startswith("ranks are gone (")
        assert "from step 8 on" in said[0]
        assert outcome.result["unread"] == 4


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
    assert outcomes[0].said("no values from rank 1 (") or outcomes[0].said("closed while rank 1 still log")
    assert not outcomes[0].said("lost, because not read in time")


def test_the_next_run_of_the_job_meets_in_a_new_group(tmp_path):
    outcomes = run_job(opens_again_after_a_loss, 3, tmp_path)
    found = outcomes[0].result
    assert found["first", (), 0] == 7.0
    assert found["first", (), 5] == 5.0
    assert found["second", (), 0] == 7.0
    assert outcomes[0].said("no values from rank 1 (waited for 2 s)")
    assert outcomes[1].said("ranks are gone (rank 0 has left the run): what this rank logs from step 2 on")


RAISES = """
import os, sys, time
from pathlib import Path
import torch.distributed as dist
from d9d_tracker import *
dist.init_process_group("gloo")
folder = Path(sys.argv[1])
accumulator = AccumulatorConfig(device="cpu", sync_every=2, backlog_dir=folder / "backlog", flush_timeout=1.0)
tracker = tracker_from_config(JsonlTrackerConfig(path=folder, accumulator=accumulator))
run = tracker.start(RunConfig(name="job"))
for step in range(4):
    run.set_step(step)
    run.scalar("sum", 1.0, reduce="sum")
if dist.get_rank() == int(sys.argv[2]):
    raise ZeroDivisionError
time.sleep(1000)
"""


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_raises_exits_so_that_the_launcher_ends_the_job(tmp_path, victim):
    script = tmp_path / "raises.py"
    script.write_text(RAISES)
    done = scripts.run_ranks(script, 2, tmp_path, str(tmp_path), str(victim))
    output = done.stdout + done.stderr
    assert done.returncode == 1, output
    assert "ZeroDivisionError" in output
