"""What the host does before a launch, where no GPU is needed to see it."""

import pytest
import torch

from d9d_tracker_kernels import launch
from d9d_tracker_kernels.binning import LINEAR


@pytest.fixture(autouse=True)
def plans(monkeypatch):
    monkeypatch.setattr(launch, "_plans", type(launch._plans)())
    return launch._plans


def test_only_the_latest_plans_are_kept(plans):
    partials, values = torch.zeros(1, 9, 4, dtype=torch.float64), torch.zeros(300)
    for numel in range(300):
        plan, _ = launch._locate([(values[:numel], 0)], torch.float32, partials)
        assert any(plan is known for known in plans.values())
    assert len(plans) == launch._MOST_PLANS
    assert {key[3][0] for key, _ in plans} == set(range(300 - launch._MOST_PLANS, 300))


@pytest.mark.parametrize("bins", [1, 510, 511, 512, 1022, 1023, 2046])
def test_there_is_a_cell_for_each_bin_and_for_under_and_over(bins):
    constants = launch.variant(torch.float32, 9, LINEAR, bins)
    assert constants["CELL_COUNT"] >= bins + 2
    assert constants["CELL_COUNT"] & (constants["CELL_COUNT"] - 1) == 0
