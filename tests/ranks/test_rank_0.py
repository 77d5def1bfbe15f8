"""Rank 0 may have a run to itself: it waits for no other, and the others' values go nowhere."""

from jobs import run_job
from programs import rank_0_alone


def test_rank_0_alone(tmp_path):
    first, *others = run_job(rank_0_alone, 3, tmp_path)
    assert {key: value for key, value in first.result["content"].items() if key[0] == "loss"} == {
        ("loss", (), step): 1.0 for step in range(5)
    }
    for outcome in others:
        assert outcome.error is None
        assert (outcome.result["content"], outcome.result["report"]) == ({}, 0)
        assert outcome.log == []
