"""Rank 0 may have a run to itself: it waits for no other, and the others' values go nowhere."""

from jobs import Job, content_of, run_job
from programs import rank_0_alone, rank_0_alone_saves

from tests.run_files import read_run


def test_rank_0_alone(tmp_path):
    first, *others = run_job(rank_0_alone, 3, tmp_path)
    assert {key: value for key, value in first.result["content"].items() if key[0] == "loss"} == {
        ("loss", (), step): 1.0 for step in range(5)
    }
    for outcome in others:
        assert outcome.error is None
        assert (outcome.result["content"], outcome.result["report"]) == ({}, 0)
        assert outcome.log == []


def test_its_state_is_what_is_saved(tmp_path):
    with Job(rank_0_alone_saves, 2, tmp_path, 0) as job:
        assert [(outcome.exit_code, outcome.error) for outcome in job.outcomes()] == [(0, None)] * 2
    run_job(rank_0_alone_saves, 2, tmp_path, 1)
    (path,) = (tmp_path / "runs").glob("*.jsonl")
    assert content_of(read_run(path)[1]) == {("sum", (), step): 1.0 for step in range(20)}
