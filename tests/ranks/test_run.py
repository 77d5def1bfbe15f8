"""One run of several ranks, end to end: the backend gets what one process with all the values would have given it."""

import socket

import pytest
import torch
from jobs import NAME, Job, content, histogram, run_job, tracker
from programs import (
    differing,
    everything,
    groups,
    no_collectives,
    one_sum,
    opens_late,
    population,
    refused,
    skipping,
    tokens,
    two_runs,
    uneven,
    value,
)

from d9d_tracker import Histogram, IntegerBinning

FINAL = {
    "mean": lambda values: sum(values) / len(values),
    "sum": sum,
    "min": min,
    "max": max,
    "last": lambda values: values[-1],
}


@pytest.mark.parametrize(("size", "steps", "resolution"), [(2, 25, "step"), (3, 20, "step"), (4, 25, "window")])
def test_curves_equal_those_of_all_ranks_values(tmp_path, size, steps, resolution):
    outcomes = run_job(everything, size, tmp_path, steps, {"scalar_resolution": resolution})
    found = outcomes[0].result["content"]
    window = range(10)  # the first
    if resolution == "step":
        for step in range(steps):
            # A step's values in the order of the ranks, each of which logged twice.
            parts = [(step, step + 1000), (step + 2000, step + 3000)][: 1 + (step == steps // 2)]  # flushed in between
            values = [value(rank, s) for part in parts for rank in range(size) for s in part]
            for reduce, final in FINAL.items():
                assert found[reduce, (), step] == final(values), (reduce, step)
            weights = [1 + rank for part in parts for rank in range(size)]
            weighted = [w * value(w - 1, part[0]) for part, w in zip(sorted(parts * size), weights, strict=True)]
            assert found["weighted", (), step] == sum(weighted) / sum(weights)
            for rank in range(size):
                own = [value(rank, part[0]) for part in parts]
                assert found["memory", (("rank", str(rank)),), step] == sum(own) / len(own)
    else:
        assert sorted(step for name, _, step in found if name == "sum") == [9, 12, 21, 24]  # flushed at 12
        first = [value(rank, s) for rank in range(size) for step in window for s in (step, step + 1000)]
        assert found["mean", (), 9] == sum(first) / len(first)
    whole = Histogram.from_values(torch.cat([population(rank, step) for rank in range(size) for step in window]))
    assert found["population", (), 9] == histogram(whole)
    routed = torch.stack([tokens(rank, step) for rank in range(size) for step in window]).sum(0)
    experts = torch.repeat_interleave(torch.arange(4), routed)
    assert found["tokens", (), 9] == histogram(Histogram.from_values(experts, IntegerBinning(bins=4)))
    for rank in range(size):
        own = Histogram.from_values(torch.cat([population(rank, step) for step in window]))
        assert found["of each rank", (("rank", str(rank)),), 9] == histogram(own)


def test_only_rank_0_opens_the_backend_and_all_know_the_run(tmp_path):
    outcomes = run_job(everything, 3, tmp_path, 25, {})
    assert [outcome.result["runs"] for outcome in outcomes] == [1, 0, 0]
    assert len({outcome.result["run_id"] for outcome in outcomes}) == 1
    assert [outcome.result["copies"] for outcome in outcomes] == [4, 4, 4]  # two windows, the flush and the rest
    said = [[line for line in outcome.log if not line.startswith("not finite")] for outcome in outcomes]
    assert said == [[], [], []]  # nothing to complain about


def test_one_process_in_a_job_of_its_own_is_rank_0(tmp_path):
    one = tracker(tmp_path)
    with one.open(NAME) as run:
        run.scalar("memory", 1.0, scope="rank")
    assert content(one) == {("memory", (("rank", "0"),), 0): 1.0}
    assert (one.rank, one.world_size) == (0, 1)


def test_ranks_that_know_different_series(tmp_path):
    size = 4
    outcomes = run_job(differing, size, tmp_path)
    found = outcomes[0].result
    train = (("stage", "train"),)
    for step in range(20):
        assert found["a", train, step] == found["b", train, step] == 2.0**size - 1
        assert found["late", train, step] == sum(2.0**rank for rank in range(size) if step >= 5 * rank)
        for stage in range(2):
            assert found["stage", (("pipeline", str(stage)), *train), step] == 2.0
        assert found["sometimes", train, step] == sum(2.0**rank for rank in range(size) if step % (rank + 1) == 0)
    for window in range(4):
        counts = found["late bins", train, 5 * window + 4][1]
        assert sum(counts) == 5 * sum(1 + rank for rank in range(window + 1))
    said = [line for line in outcomes[0].log if line.startswith("known to some ranks only")]
    assert any("series 'stage' {'pipeline': '1', 'stage': 'train'} (2 of 4)" in line for line in said)
    assert any("series 'late' {'stage': 'train'} (1 of 4)" in line for line in said)
    assert not any("'a'" in line or "'b'" in line for line in said)
    assert not any(outcome.said("known to some") for outcome in outcomes[1:])


@pytest.mark.parametrize(
    ("configs", "words"),
    [
        (
            [{"sync_every": 10}, {"sync_every": 10}, {"sync_every": 20}],
            "accumulator.sync_every differs between ranks: 10 on ranks 0-1; 20 on rank 2",
        ),
        (
            [{}, {"scalar_resolution": "window"}],
            "accumulator.scalar_resolution differs between ranks: 'step' on rank 0; 'window' on rank 1",
        ),
    ],
)
def test_settings_that_differ_are_refused_on_all_ranks(tmp_path, configs, words):
    for outcome in run_job(refused, len(configs), tmp_path, configs):
        assert outcome.result.startswith("TrackerValueError")
        assert words in outcome.result


def test_a_backend_that_does_not_open_is_raised_on_all_ranks(tmp_path):
    outcomes = run_job(refused, 3, tmp_path, [{}] * 3, "no such project")
    assert outcomes[0].result == "ValueError: no such project"
    for outcome in outcomes[1:]:
        assert outcome.result.startswith("TrackerValueError: open: rank 0 could not open the run")
        assert "no such project" in outcome.result


@pytest.mark.parametrize("who", [0, 1])
def test_a_rank_that_does_not_open_is_named_and_a_later_try_succeeds(tmp_path, who):
    outcomes = run_job(opens_late, 2, tmp_path, who)
    words, _ = outcomes[1 - who].result
    assert f"not all 2 ranks opened the run within accumulator.distributed_timeout=1 s (waited for rank {who}" in words
    assert outcomes[1 - who].said(f"open: waiting for rank {who}")
    assert outcomes[0].result[1] == {("sum", (), 0): 3.0}


def test_a_factory_chooses_the_ranks_that_share_a_run(tmp_path):
    outcomes = run_job(groups, 4, tmp_path, "factory")
    own = [{("own", (("rank", str(r)),), 0): 2.0 ** (first + r) for r in range(2)} for first in (0, 2)]
    assert outcomes[0].result == {("sum", (), 0): 3.0} | own[0]
    assert outcomes[2].result == {("sum", (), 0): 12.0} | own[1]
    assert outcomes[1].result == outcomes[3].result == {}


def test_off_gives_every_process_a_run_of_its_own(tmp_path):
    outcomes = run_job(groups, 2, tmp_path, "off")
    for rank, outcome in enumerate(outcomes):
        assert outcome.result == {("sum", (), 0): 2.0**rank, ("own", (("rank", "0"),), 0): 2.0**rank}


def test_two_trackers_at_once_and_one_of_them_again(tmp_path):
    outcomes = run_job(two_runs, 3, tmp_path)
    assert outcomes[0].result == {(name, (), 0): 7.0 for name in "abc"}


def test_training_issues_no_collectives(tmp_path):
    for outcome in run_job(no_collectives, 2, tmp_path):
        counted, issued = outcome.result
        assert counted == 1  # the counter counts
        assert issued == 0


def test_uneven_numbers_of_steps(tmp_path):
    outcomes = run_job(uneven, 4, tmp_path)
    found = outcomes[0].result
    steps = {0: 10, 1: 11, 2: 9, 3: 5}
    for step in range(11):
        assert found["sum", (), step] == sum(2.0**rank for rank, count in steps.items() if step < count), step
    assert sum(value[2] for (name, *_), value in found.items() if name == "h") == sum(steps.values())
    assert outcomes[0].said("rank 3 left the run before step")
    assert not any(outcome.said("lost") for outcome in outcomes)


def test_steps_that_one_rank_skips_shift_its_windows_and_no_value(tmp_path):
    outcomes = run_job(skipping, 2, tmp_path)
    found = outcomes[0].result
    assert found == {("sum", (), step): 1.0 if step % 10 >= 7 else 3.0 for step in range(40)}
    assert outcomes[0].said("windows end at different steps")


def has_ipv6_loopback():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
            return probe.getsockname()[1]
    except OSError:
        return 0


@pytest.mark.skipif(not has_ipv6_loopback(), reason="needs an IPv6 loopback interface")
def test_a_job_that_meets_over_ipv6(tmp_path):
    with Job(one_sum, 2, tmp_path, rendezvous=f"tcp://[::1]:{has_ipv6_loopback()}") as job:
        outcomes = job.outcomes(60)
    assert [(outcome.error, outcome.exit_code) for outcome in outcomes] == [(None, 0)] * 2
    assert [outcome.result for outcome in outcomes] == [{("sum", (), 0): 3.0}, {}]
