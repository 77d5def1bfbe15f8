"""A rank that stays away for longer than it is waited for, and comes back: merged again, and what it lacks is named."""

import re

import pytest
from jobs import run_job
from programs import stays_away


def named(words: str) -> range:
    first, last = map(int, re.fullmatch(r"rank \d: steps (\d+) to (\d+)", words).groups())
    return range(first, last + 1)


@pytest.mark.parametrize("who", [1, 2])
def test_a_member(tmp_path, who):
    outcomes = run_job(stays_away, 3, tmp_path, who)
    first = outcomes[0].result
    (words,) = first["missing"]
    assert words.startswith(f"rank {who}: steps 4 to ")
    missing = named(words)
    assert missing[-1] < 39
    for step in range(40):
        here = sorted({0, 1, 2} - ({who} if step in missing else set()))
        assert first["found"]["sum", (), step] == sum(2.0**rank for rank in here), step
        assert first["found"]["whose/max_rank", (), step] == here[-1]
    assert outcomes[who].result["missing"] == [words]
    assert outcomes[who].result["unread"] == len(missing) // 4
    assert outcomes[0].said(f"rank {who} is back: its steps 4 to {missing[-1]} are not in the run")
    assert outcomes[who].said(f"in the run again from step {missing[-1] + 1} on")


def test_rank_0(tmp_path):
    outcomes = run_job(stays_away, 3, tmp_path, 0)
    found = outcomes[0].result["found"]
    missing = {rank: [*map(named, outcomes[rank].result["missing"])] for rank in (1, 2)}
    for step in range(40):
        here = {0} | {rank for rank, ranges in missing.items() if not any(step in one for one in ranges)}
        assert found["sum", (), step] == sum(2.0**rank for rank in here), step
    assert 4 in missing[1][0]
    both = outcomes[1].result["missing"] + outcomes[2].result["missing"]
    assert sorted(outcomes[0].result["missing"]) == both
    assert found["sum", (), 39] == 7.0
