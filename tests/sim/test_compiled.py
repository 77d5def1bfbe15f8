"""A training whose kernels are compiled, loaded and launched by Triton itself, and executed: eager, then captured."""

from importlib.metadata import version

import pytest
import torch
from sim.simulation import simulated
from sim.trainings import opened, points

from d9d_tracker import IntegerBinning, LinearBinning
from d9d_tracker_kernels import launch

pytestmark = pytest.mark.skipif(
    tuple(map(int, version("triton").split(".")[:2])) < (3, 9), reason="the executor knows the code of Triton 3.9"
)


def log(run, inputs, handle):
    run.scalar("sum", inputs.sum(), reduce="sum")
    run.scalars({"most": inputs.amax(), "first": inputs[0]}, reduce="max")
    run.scalar("weighted", inputs.mean(), weight=inputs.abs().sum())
    run.bins("values", inputs)
    run.bins("linear", inputs[1:], binning=LinearBinning(low=-3, high=3, bins=6), every=2)
    run.bins_many({"a": inputs[3:], "b": inputs * 2}, binning=IntegerBinning(bins=4))
    run.counts("tokens", inputs.abs().long()[::3])
    handle.bins(inputs)


def train(device: str, graph_of=None):
    records = []
    with opened(device, records, sync_every=2, max_scalars=8, max_histograms=20) as (_, run):
        inputs, handle = torch.zeros(30, device=device), run.bins_series("handle")
        replay = None
        for step in range(5):
            run.set_step(step)
            run.set_context({"stage": "late"} if step > 3 else {})
            value = (torch.arange(30.0) * (step + 1)) % 9 - 4
            inputs.copy_(value.pin_memory() if device != "cpu" else value, non_blocking=True)
            if step > 1 and graph_of is not None:
                replay = replay or graph_of(lambda: log(run, inputs, handle))
                replay()
            else:
                log(run, inputs, handle)
    return points(records)


def test_what_is_compiled_counts_what_the_cpu_counts(monkeypatch):
    expected = train("cpu")
    with simulated(1, compiled=True) as made:

        def graph_of(function):
            graph, loaded = torch.cuda.CUDAGraph(), list(made.notes.loaded)
            with torch.cuda.graph(graph):
                function()
            assert made.notes.loaded == loaded != [], "a capture loads no kernel"
            return graph.replay

        found = train("cuda", graph_of)
        assert not made.notes.refused
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, float):
            assert found[key] == value, key
        else:
            assert (found[key][0], *found[key][3:]) == (value[0], *value[3:]), key
            assert found[key][1:3] == pytest.approx(value[1:3], rel=1e-6, abs=1e-6), key


def test_a_kernel_that_is_first_met_in_a_capture_is_refused_as_some_drivers_do():
    with simulated(2, compiled=True) as made, opened("cuda", [], max_scalars=8, max_histograms=2) as (_, run):
        values = torch.ones(3, device="cuda")
        assert launch.INLINE_PTX
        with pytest.raises(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph()):
            run.bins("values", values)
        assert made.notes.refused
