"""Four series answer which rank stands out, whatever the number of ranks; a value of one rank only arrives too."""

import math

import pytest
from jobs import NAME, Job, content, content_of, run_job, tracker
from programs import spread, spread_in_pieces, spread_over_lives

from tests.run_files import read_run


@pytest.mark.parametrize("size", [2, 3, 4])
def test_min_mean_max_and_whose_it_is(tmp_path, size):
    found = run_job(spread, size, tmp_path, "step")[0].result
    train, head = (("stage", "train"),), (("part", "head"), ("stage", "train"))
    assert {name for name, *_ in found} == {
        *(f"{name}/{part}" for name in ("seconds", "loss", "negative") for part in ("min", "mean", "max", "max_rank")),
        "stage loss",
    }
    for step in range(8):
        seconds = [10.0 if step % size == rank else rank / 4 for rank in range(size)]
        assert found["seconds/min", train, step] == min(seconds)
        assert found["seconds/mean", train, step] == sum(seconds) / size
        assert found["seconds/max", train, step] == 10.0
        assert found["seconds/max_rank", train, step] == step % size
        assert found["stage loss", train, step] == step
        if step == 5:
            assert found["loss/max_rank", train, step] == 1  # who sees the NaN
            assert all(math.isnan(found[f"loss/{part}", train, step]) for part in ("min", "mean", "max"))
        else:
            assert found["loss/mean", train, step] == 1.0
        if step % 2 == 0:
            assert found["negative/max", head, step] == -1.0
            assert found["negative/max_rank", head, step] == 1
            assert found["negative/min", head, step] == -(size - 1.0)
        else:
            assert ("negative/max", head, step) not in found


def test_once_a_window(tmp_path):
    found = run_job(spread, 2, tmp_path, "window")[0].result
    assert found["seconds/max", (("stage", "train"),), 3] == (0.25 + 10) / 2
    assert found["seconds/max_rank", (("stage", "train"),), 3] == 1


def test_one_process_is_a_spread_of_one(tmp_path):
    one = tracker(tmp_path)
    with one.open(NAME) as run:
        run.scalar("seconds", 2.0, scope="spread")
        for log in (run.bins, run.counts, run.histogram, run.bins_series):
            with pytest.raises(ValueError, match="scope='spread' is of scalars"):
                log("values", None, scope="spread")
    parts = {"min": 2.0, "mean": 2.0, "max": 2.0, "max_rank": 0.0}
    assert content(one) == {(f"seconds/{part}", (), 0): value for part, value in parts.items()}


@pytest.mark.parametrize("resumes", [False, True])
def test_a_step_that_is_flushed_in_the_middle_counts_as_a_whole(tmp_path, resumes):
    found = run_job(spread_in_pieces, 2, tmp_path, resumes)[0].result
    for step, least, most, whose in ((0, 0.0, 10.0, 1), (1, 4.0, 4.0, 1), (2, 0.0, 10.0, 1)):
        parts = {"min": least, "mean": (least + most) / 2, "max": most, "max_rank": whose}
        assert {part: found[f"seconds/{part}", (), step] for part in parts} == parts
    assert found["count", (), 1] == 1.0


@pytest.mark.parametrize("flushes", [False, True])
@pytest.mark.parametrize(
    ("sizes", "resolution"), [((4, 2), "step"), ((4, 3), "step"), ((2, 4), "step"), ((4, 2), "window")]
)
def test_each_saved_rank_counts_with_its_own_number(tmp_path, sizes, resolution, flushes):
    with Job(spread_over_lives, sizes[0], tmp_path, 0, resolution, flushes) as job:
        assert [outcome.exit_code for outcome in job.outcomes()] == [0] * sizes[0]
    run_job(spread_over_lives, sizes[1], tmp_path, 1, resolution, flushes)
    (path,) = (tmp_path / "runs").glob("*.jsonl")
    found = content_of(read_run(path)[1], rewritten=True)
    if resolution == "window":
        step = 11 if flushes else 9  # at the end of the window that was open
        assert found["seconds/max", (), step] == 10.0 * (sizes[0] - 1)
        assert found["seconds/min", (), step] == 0.0
        assert found["seconds/max_rank", (), step] == sizes[0] - 1
        return
    for step in range(12):
        size = sizes[step > 4]
        parts = {"min": 0.0, "mean": 10.0 * (size - 1) / 2, "max": 10.0 * (size - 1), "max_rank": size - 1}
        assert {part: found[f"seconds/{part}", (), step] for part in parts} == parts, step
        assert found["loss/max_rank", (), step] == (1 if step == 2 else size - 1)
