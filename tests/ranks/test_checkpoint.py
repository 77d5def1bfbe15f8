"""Checkpoints of a job: nothing is lost and nothing counts twice, on the same or another number of ranks."""

import pytest
import torch
from jobs import Job, content_of, run_job
from programs import (
    comes_back_and_is_saved,
    keeps_its_number,
    life,
    refuses_to_load,
    saves_after_rank_0,
    saves_alone,
    skips_over_lives,
)

from d9d_tracker.pipeline.job_state import saved_ranks
from tests.run_files import read_run

STEPS = 38


def written(folder) -> dict:
    (path,) = (folder / "runs").glob("*.jsonl")
    return content_of(read_run(path)[1], rewritten=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What one process writes that is never stopped, with and without a flush in step 14."""
    found = {}
    for flush_in in (None, 14):
        folder = tmp_path_factory.mktemp("whole")
        run_job(life, 1, folder, range(STEPS), None, None, flush_in)
        found[flush_in] = written(folder)
    return found


@pytest.mark.parametrize(
    ("before", "after", "load"),
    [
        (3, 3, "plain"), (3, 3, "helper"), (4, 2, "helper"), (4, 3, "helper"), (2, 3, "helper"), (3, 1, "helper"),
        (1, 2, "helper"), (1, 1, "helper"),
    ],
)  # fmt: skip
def test_resuming_on_the_same_or_another_number_of_ranks(tmp_path, uninterrupted, before, after, load):
    with Job(life, before, tmp_path, range(STEPS), 15) as job:
        assert [outcome.exit_code for outcome in job.outcomes()] == [0] * before
    assert max(step for *_, step in written(tmp_path)) == 22  # the life that ended went on
    run_job(life, after, tmp_path, range(15, STEPS), None, load)
    assert written(tmp_path) == uninterrupted[None]


@pytest.mark.parametrize(("before", "after"), [(3, 3), (4, 2), (2, 3)])
def test_resuming_in_the_middle_of_a_step_that_was_written_in_part(tmp_path, uninterrupted, before, after):
    with Job(life, before, tmp_path, range(STEPS), None, None, 14, True) as job:
        assert [outcome.exit_code for outcome in job.outcomes()] == [0] * before
    run_job(life, after, tmp_path, range(15, STEPS), None, "helper")
    assert written(tmp_path) == uninterrupted[14]


@pytest.mark.parametrize(("before", "after", "words"), [(4, 2, "saved by 4 ranks"), (2, 3, "Missing key")])
def test_a_plain_load_on_another_number_of_ranks_is_refused(tmp_path, before, after, words):
    with Job(life, before, tmp_path, range(STEPS), 15) as job:
        job.outcomes()
    outcomes = run_job(life, after, tmp_path, range(15, STEPS), None, "plain")
    for outcome in outcomes:
        assert words in outcome.result
    if words != "Missing key":
        assert "d9d_tracker.distributed.load(tracker, checkpoint_id)" in outcomes[0].result


def test_a_state_that_rank_0_saved_alone_loads_with_a_warning(tmp_path, uninterrupted):
    with Job(life, 3, tmp_path, range(STEPS), 15) as job:
        job.outcomes()
    outcomes = run_job(life, 3, tmp_path, range(15, STEPS), None, "rank 0")
    for rank in (1, 2):
        assert outcomes[rank].said("the state holds the values of rank 0 alone")
    found = written(tmp_path)
    lost = {key for key, value in uninterrupted[None].items() if found[key] != value}
    assert found.keys() == uninterrupted[None].keys()
    assert {step for *_, step in lost} == {10, 11, 12, 13, 14, 19}  # the unfinished window, nothing else


def test_rank_0_saves_alone_while_the_others_train(tmp_path):
    outcomes = run_job(saves_alone, 3, tmp_path)
    assert outcomes[0].result == {("sum", (), step): 7.0 for step in range(12)}
    assert set(torch.load(tmp_path / "state.pt", weights_only=True)["ranks"]) == {"0"}


def test_a_state_that_some_ranks_loaded_is_refused_on_all(tmp_path):
    for outcome in run_job(refuses_to_load, 2, tmp_path):
        assert "the run of the loaded state differs between ranks" in outcome.result


@pytest.mark.parametrize(("before", "after"), [(2, 2), (3, 3), (3, 2), (3, 1), (2, 3)])
@pytest.mark.parametrize("saves_at", [9, 18])
def test_what_is_on_its_way_or_held_back_is_in_the_states(tmp_path, before, after, saves_at):
    with Job(skips_over_lives, before, tmp_path, 0, before, saves_at) as job:
        assert [outcome.exit_code for outcome in job.outcomes()] == [0] * before
    run_job(skips_over_lives, after, tmp_path, 1, before, saves_at)
    found = written(tmp_path)
    for step in range(30):
        here = [rank for rank in range(before) if rank < before - 1 or step % 2 == 0]
        assert found["sum", (), step] == sum(2.0**rank for rank in here), step
        if step <= saves_at:
            assert (found["whose/min", (), step], found["whose/max_rank", (), step]) == (here[0], here[-1]), step
            assert [("own", (("rank", str(rank)),), step) in found for rank in here] == [True] * len(here)
    elements = sum(value[2] for (name, *_), value in found.items() if name == "h")
    assert elements == sum(before - step % 2 for step in range(30))


@pytest.mark.parametrize("after", [2, 1])
def test_what_a_rank_that_was_given_up_has_kept_does_not_replace_what_is_written(tmp_path, after):
    with Job(comes_back_and_is_saved, 2, tmp_path, 0) as job:
        assert [(outcome.exit_code, outcome.error) for outcome in job.outcomes()] == [(0, None)] * 2
    run_job(comes_back_and_is_saved, after, tmp_path, 1)
    both = 2.0**after - 1
    expected = {step: 3.0 if step < 4 else 1.0 if step < 14 else both for step in range(20)}
    assert written(tmp_path) == {("sum", (), step): value for step, value in expected.items()}


def test_a_window_that_rank_0_has_taken_after_it_saved_is_in_the_state_of_its_rank(tmp_path):
    found = run_job(saves_after_rank_0, 2, tmp_path, 5)[0].result
    assert found == {"missing": [], **{("sum", (), step): 3.0 for step in range(6)}}


def test_of_older_ones_it_is_said_that_they_are_not_in_the_run(tmp_path):
    outcomes = run_job(saves_after_rank_0, 2, tmp_path, 21)
    assert [outcome.result.pop("missing") for outcome in outcomes] == [["rank 1: steps 0 to 11"]] * 2
    assert outcomes[0].result == {("sum", (), step): 1.0 if step < 12 else 3.0 for step in range(22)}
    assert outcomes[0].said("rank 1 is back: its steps 0 to 11 are not in the run, from step 12 on it is")


def test_a_state_that_is_taken_when_the_job_is_over_keeps_its_rank_and_size(tmp_path):
    outcomes = run_job(keeps_its_number, 2, tmp_path)
    assert [outcome.result["ranks"] for outcome in outcomes] == [{"0"}, {"1"}]
    assert [outcome.result["size"] for outcome in outcomes] == [2, 2]
    assert outcomes[0].result["found"] == {("sum", (), step): 3.0 for step in range(20)}


@pytest.mark.parametrize(("size", "saved"), [(1, 1), (1, 7), (2, 7), (3, 4), (4, 4), (5, 3), (8, 1), (6, 64)])
def test_every_saved_rank_is_taken_once_and_in_order(size, saved):
    taken = [one for rank in range(size) for one in saved_ranks(rank, size, saved)]
    assert taken == list(range(saved))
    assert 0 in saved_ranks(0, size, saved)
