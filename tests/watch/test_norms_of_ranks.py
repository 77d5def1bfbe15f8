"""Norms of models that are divided among ranks are those of the whole tensors."""

import math

import pytest
from jobs import run_job
from ranked_programs import flat_shards, norms, sharded_meanwhile, stages


@pytest.mark.parametrize(
    ("how", "size"), [("ddp", 2), ("fsdp", 2), ("fsdp", 3), ("hsdp", 4), ("tp", 2), ("fsdp and tp", 4)]
)
def test_norms_are_those_of_whole_tensors(tmp_path, how, size):
    outcomes = run_job(norms, size, tmp_path, how)
    found, expected = outcomes[0].result
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-5), key
    assert not any(outcome.said("cannot be counted") for outcome in outcomes)


def test_the_total_is_of_layers_on_all_ranks(tmp_path):
    outcomes = run_job(stages, 2, tmp_path)
    found = {name: value for (name, _, _), value in outcomes[0].result[0].items()}
    assert found["norms/gradients"] == pytest.approx(math.hypot(*(outcome.result[1] for outcome in outcomes)))
    assert {"norms/gradients/stage0.weight", "norms/gradients/stage1.weight"} <= found.keys()


def test_a_model_that_is_sharded_while_it_is_watched(tmp_path):
    outcomes = run_job(sharded_meanwhile, 2, tmp_path)
    found, expected = outcomes[0].result
    assert found == pytest.approx(expected, rel=1e-5)
    assert not any(outcome.said("counted") for outcome in outcomes)


def test_pieces_of_flat_tensors_are_refused(tmp_path):
    for outcome in run_job(flat_shards, 2, tmp_path):
        assert "shard with fully_shard" in outcome.result
