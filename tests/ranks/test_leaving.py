"""Ranks that leave the run while others train: the others go on, and what was logged last arrives or is named."""

import pytest
from jobs import Job, run_job
from programs import leaves, rank_0_evaluates, rank_0_raises, training_group

from d9d_tracker import NonFinite

SIZE = 3


@pytest.mark.parametrize("who", [0, 1, 2])
def test_the_others_go_on_without_and_its_last_values_arrive(tmp_path, who):
    outcomes = run_job(leaves, SIZE, tmp_path, who, 7, {"flush_timeout": 2.0})
    found = outcomes[0].result["found"]
    left = sorted({0, 1, 2} - {who})
    for step in range(30):
        here = [0, 1, 2] if step < 7 else left
        assert found["sum", (), step] == sum(2.0**rank for rank in here), step
        assert (found["whose/min", (), step], found["whose/max_rank", (), step]) == (here[0], here[-1]), step
    assert sum(value[2] for (name, *_), value in found.items() if name == "h") == 2 * 30 + 7
    for outcome in outcomes:
        assert outcome.result["missing"] == []
        assert outcome.result["unread"] == 0
    assert outcomes[0].said(f"rank {who} left the run before step") == (who > 0)


def test_rank_0_is_busy_while_the_others_end(tmp_path):
    outcomes = run_job(rank_0_evaluates, SIZE, tmp_path)
    found = outcomes[0].result["found"]
    for step in range(13):
        assert found["sum", (), step] == 7.0
        assert [found["own", (("rank", str(rank)),), step] for rank in range(3)] == [1.0, 2.0, 4.0]
    assert sum(value[2] for (name, *_), value in found.items() if name == "h") == 3 * 13
    assert found["accuracy", (), 12] == 0.5
    assert outcomes[0].result["nonfinite"] == [NonFinite("bad", {}, 12, 12, "nan", ranks=(2,))]
    assert [outcome.result["unread"] for outcome in outcomes] == [0, 0, 0]


def test_rank_0_raises_and_what_the_others_log_is_counted_and_named(tmp_path):
    outcomes = run_job(rank_0_raises, SIZE, tmp_path)
    found = outcomes[0].result["found"]
    assert found == {("sum", (), step): 7.0 if step < 8 else 1.0 for step in range(10)}
    assert outcomes[0].result["missing"] == ["ranks 1-2: from step 8 on"]
    for outcome in outcomes[1:]:
        assert outcome.result["unread"] == 3
        assert outcome.said("ranks are gone (rank 0 has left the run): what this rank logs from step 8 on")


def test_the_training_uses_the_same_group_and_destroys_it(tmp_path):
    with Job(training_group, 2, tmp_path) as job:
        outcomes = job.outcomes()
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert outcomes[0].result == {"found": {("sum", (), step): 3.0 for step in range(51)}, "wrong": 0}
    assert outcomes[1].result["wrong"] == 0
