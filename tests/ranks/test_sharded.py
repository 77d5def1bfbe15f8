"""Tensors that are divided among ranks: every element counts once, wherever it lies."""

import pytest
import torch
from jobs import histogram, run_job
from sharded_programs import PLACEMENTS, SMALL, WHOLE, counted, gradients, norms, scalars, typed, watched

from d9d_tracker import Histogram


@pytest.mark.parametrize(("size", "compiled"), [(2, False), (4, False), (4, True)])
def test_every_element_counts_once_under_every_placement(tmp_path, size, compiled):
    found = run_job(counted, size, tmp_path, compiled)[0].result
    expected = {"whole": histogram(Histogram.from_values(WHOLE)), "small": histogram(Histogram.from_values(SMALL))}
    assert len(found) == sum(
        (size == 4 or len(placements) == 1) * (1 + ("1" not in name)) for name, placements in PLACEMENTS.items()
    )
    for (name, _, _), value in found.items():
        assert value == expected[name.partition(":")[0]], name


@pytest.mark.parametrize("compiled", [False, True])
def test_scalars(tmp_path, compiled):
    parts = [1.0, 2.0, 3.0]
    for rank, outcome in enumerate(run_job(scalars, 3, tmp_path, compiled)):
        found, errors = outcome.result
        if rank == 0:
            assert {name: value for (name, _, _), value in found.items()} == {
                "replicated": 5.0,
                "brought together": 6.0,
                "sum/mean": sum(parts),
                "sum/sum": 3 * sum(parts),  # as if every rank had logged the whole
                "sum/weighted": sum(parts),
                "avg/mean": sum(parts) / 3,
                "avg/sum": 3 * sum(parts) / 3,
                "min": 1.0,
                "max": 3.0,
            }
        names = ("partial bins", "partial scalar", "partial minimum", "shard scalar", "shard counts", "strided counts")
        moves = ("redistribute", *["full_tensor"] * 5)
        for error, name, move in zip(errors, names, moves, strict=True):
            assert repr(name) in error
            assert move in error


@pytest.mark.parametrize(("how", "size"), [("fsdp", 2), ("fsdp", 3), ("hsdp", 4)])
def test_a_norm_is_that_of_all_shards(tmp_path, how, size):
    """Partial norms are logged without a collective on the training stream; ``get_total_norm`` may bring its own."""
    found, whole = run_job(norms, size, tmp_path, how)[0].result
    assert found.keys() == whole.keys()
    for key, value in whole.items():
        assert found[key] == pytest.approx(value, rel=1e-6), key


@pytest.mark.parametrize(("how", "size"), [("fsdp", 2), ("fsdp", 4), ("hsdp", 4), ("ddp", 2), ("ddp", 4)])
def test_gradients_equal_those_of_one_process(tmp_path, how, size):
    """Bin by bin, and every statistic to the bit."""
    outcomes = run_job(gradients, size, tmp_path, how, 4)
    single, whole = run_job(gradients, 1, tmp_path, "single", 4)[0].result
    found, own = outcomes[0].result
    assert {key for key in found if "of all" not in key[0]} == set(single)
    for name, gradient in whole.items():
        assert torch.equal(own[name], gradient)
        assert len(gradient.unique()) > 3
        tracked = found[name, (), 2]
        assert tracked == single[name, (), 2]
        assert sum(tracked[1]) == 3 * gradient.numel()
        if how == "ddp":
            of_all = found[f"{name} of all ranks", (), 2]
            assert of_all[1] == [size * count for count in tracked[1]]
            assert (of_all[0], of_all[4:6]) == (tracked[0], tracked[4:6])


def test_what_other_ranks_count_is_not_said_to_be_missing(tmp_path):
    outcomes = run_job(watched, 4, tmp_path)
    assert {name.partition("/")[0] for name, *_ in outcomes[0].result} == {"gradients", "parameters"}
    assert not any(outcome.said("nothing was counted") for outcome in outcomes)


def test_tensors_typed_by_spmd_types(tmp_path):
    pytest.importorskip("spmd_types", reason="pip install spmd_types")
    outcomes = run_job(typed, 4, tmp_path)
    found = {name: value for (name, _, _), value in outcomes[0].result[0].items()}
    assert found.pop("sum") == 1.0 + 2.0 + 3.0 + 4.0
    assert found.pop("sum along tp") == 1.0 + 2.0
    assert found.pop("replicated") == 5.0
    assert found.pop("varying") == 4.0
    whole = histogram(Histogram.from_values(WHOLE))
    assert found == dict.fromkeys([*(name for name, p in PLACEMENTS.items() if len(p) == 2), "invariant"], whole)
    for outcome in outcomes:
        bins, maximum = outcome.result[1]
        assert "'partial bins': the values are parts of a sum" in bins
        assert "'partial maximum': with reduce='max', ranks cannot make a whole of this part of a sum" in maximum
