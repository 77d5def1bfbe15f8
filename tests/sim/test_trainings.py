"""Trainings on a GPU made of software equal those on the CPU, whatever the order in which streams get on.

``make test-sim SCHEDULES=1000`` tries as many orders.
"""

import functools
import os

import pytest
import torch
from sim.simulation import simulated
from sim.trainings import as_it_is, captured, graphed, on_side_streams, train

SCHEDULES = int(os.environ.get("SCHEDULES", "2"))
WAYS = {
    "as it is": (as_it_is, "cuda", {}),
    "captured by hand": (captured, "cuda", {}),
    "graphed callables": (graphed, "cuda", {}),
    "on a side stream": (on_side_streams, "cuda", {}),
    "windows of a step": (captured, "cuda", {"sync_every": 1}),
    "norms, captured by hand": (captured, "cuda", {"norms": True, "max_scalars": 320}),
    "on the device that is not current": (as_it_is, "cuda:1", {"sync_every": 7}),
    "captured where it is not current": (captured, "cuda:1", {}),
}


@functools.cache
def expected(**config):
    """The points of the CPU."""
    return train("cpu", as_it_is, **config)


def comparable(points, how):
    """Leave out what graphed callables have no hooks for, and the first window of what they log in warming up."""
    if how is not graphed:
        return points
    is_other = lambda name, step: "activations/" in name or ("inside" in name and step < 4)  # noqa: E731 as short as its name
    return {key: value for key, value in points.items() if not is_other(key[0], key[2])}


@pytest.mark.parametrize("way", WAYS)
def test_every_order_gives_the_points_of_the_cpu(way):
    how, device, config = WAYS[way]
    right = comparable(expected(**config), how)
    for seed in range(SCHEDULES):
        with simulated(seed):
            found = comparable(train(device, how, **config), how)
        assert {key: value for key, value in found.items() if right.get(key) != value} == {}, f"schedule {seed}"
        assert set(found) == set(right), f"schedule {seed}"
    assert not torch.cuda.is_available(), "it ends"
