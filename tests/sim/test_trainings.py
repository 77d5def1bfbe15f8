"""Trainings on a GPU made of software equal those on the CPU, whatever the order in which streams get on.

``make test-sim SCHEDULES=1000`` tries as many orders.
"""

import functools
import os

import pytest
import torch
from sim.simulation import simulated
from sim.trainings import as_it_is, captured, graphed, on_side_streams, points, train

from d9d_tracker import AccumulatingTracker, AccumulatorConfig, RunConfig
from d9d_tracker.testing import RecordingTracker

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


def test_a_graph_of_the_run_before_logs_to_the_next_one(tmp_path):
    kept = RecordingTracker()
    config = AccumulatorConfig(device="cuda", backlog_dir=tmp_path, distributed="off", sync_every=4, summary=False)
    with simulated(3):
        tracker, graph, value = AccumulatingTracker(kept, config), torch.cuda.CUDAGraph(), torch.full((1,), 2.0).cuda()
        with tracker.open(RunConfig(name="run")) as run:
            handle = run.scalar_series("handle")

            def log():
                run.scalar("name", value)
                handle.scalar(value)
                run.bins("bins", value)

            log()
            with torch.cuda.graph(graph):
                log()
        with tracker.open(RunConfig(name="run")) as run:
            for step in range(6):
                run.set_step(step)
                run.scalars({"other": value + 5, "another": value + 7})  # have the slots of name and handle
                graph.replay()
    found = points(kept.run.records)
    values = {"name": 2.0, "handle": 2.0, "other": 7.0, "another": 9.0}
    assert {key: one for key, one in found.items() if key[0] != "bins"} == {
        (name, (), step): one for name, one in values.items() for step in range(6)
    }
    assert sum(count for count, *_ in (one for key, one in found.items() if key[0] == "bins")) == 6
