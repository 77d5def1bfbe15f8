"""What tracking adds to a compiled graph on a GPU, read off the graph and off the source that Inductor emits."""

import re

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from d9d_tracker import AccumulatorConfig
from d9d_tracker.accumulator.run import AccumulatingRun
from d9d_tracker.bank.buffers import Buffers

SYNCS = ("_local_scalar_dense", "nonzero", "aten.item", "is_nonzero", "masked_select", "unique", "equal.default")


def arguments(populations: int = 0):
    """A run on the fake GPU, inputs of a layer, and populations of different sizes."""
    config = AccumulatorConfig(device="cuda:0")
    run = AccumulatingRun(Buffers(config), config)
    run.is_open = True
    inputs = torch.randn(512, 256, device="cuda:0"), torch.randn(256, 128, device="cuda:0")
    return run, *inputs, [torch.randn(64, 8 + index, device="cuda:0") for index in range(populations)]


def layer(inputs, weight, count):
    hidden = torch.relu(inputs @ weight)
    return hidden, hidden.mean(0)[:count].unbind()


def untracked(run, inputs, weight, populations, count):
    hidden, values = layer(inputs, weight, count)
    return hidden, values[0] if values else None, [population * 2 for population in populations]


def one_by_one(run, inputs, weight, populations, count):
    hidden, values = layer(inputs, weight, count)
    for index, value in enumerate(values):
        run.scalar(f"value/{index}", value)
    return hidden, values[0]


def by_mapping(run, inputs, weight, populations, count):
    hidden, values = layer(inputs, weight, count)
    run.scalars({f"value/{index}": value for index, value in enumerate(values)})
    return hidden, values[0]


def every_reduction(run, inputs, weight, populations, count):
    hidden, values = layer(inputs, weight, count)
    for index, value in enumerate(values):
        reduce = ("mean", "sum", "min", "max", "last")[index % 5]
        run.scalar(f"value/{index}", value, reduce=reduce, weight=values[0] if reduce == "mean" else None)
    return hidden, values[0]


def with_bins(run, inputs, weight, populations, count):
    doubled = [population * 2 for population in populations]
    for index, population in enumerate(doubled):
        run.bins(f"population/{index}", population)
    hidden, values = layer(inputs, weight, count)
    return hidden, values[0] if values else None, doubled


def everything(run, inputs, weight, populations, count):
    with_bins(run, inputs, weight, populations, count)
    run.scalar("constant", 2.5)
    run.scalars({"a": inputs.sum(), "b": inputs.max()}, {"stage": "train"}, weight=inputs.abs().sum())
    return every_reduction(run, inputs, weight, populations, count)


def bound(function, count):
    return lambda run, inputs, weight, populations: function(run, inputs, weight, populations, count)


def test_no_sync_and_nothing_on_the_cpu(fake_cuda):
    nodes = fake_cuda.nodes(bound(everything, 5), lambda: arguments(populations=3))
    assert not [node for node in nodes if any(sync in str(node.target) for sync in SYNCS)]
    tensors = [node for node in nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    assert {node.meta["val"].device.type for node in tensors} == {"cuda"}


def test_the_check_itself_sees_syncs_and_the_cpu(fake_cuda):
    def with_cpu_tensor(run, inputs, weight, populations):
        return inputs * torch.ones(3)[0]

    def with_sync(run, inputs, weight, populations):
        return inputs * weight.long().sum().item()

    nodes = fake_cuda.nodes(with_cpu_tensor, arguments)
    assert "cpu" in {n.meta["val"].device.type for n in nodes if isinstance(n.meta.get("val"), torch.Tensor)}
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        try:
            found = str([node.target for node in fake_cuda.nodes(with_sync, arguments)])
        except DataDependentOutputException as error:  # a fake tensor has no value to wait for
            found = str(error)
    assert SYNCS[0] in found


def test_no_copy_of_a_bank(fake_cuda):
    made = []

    def make():
        made.append(arguments(populations=3))
        return made[-1]

    source = fake_cuda.source(bound(everything, 5), make)
    allocated = re.findall(r"empty_strided_\w+\((\([^)]*\))", source)
    assert allocated
    buffers = made[0][0].buffers
    histograms = buffers.histograms
    banks = (buffers.scalars.current, histograms.counts, histograms.moments, histograms.partials)
    assert not {str(tuple(bank.shape)) for bank in banks} & set(allocated)
    assert "clone" not in source


@pytest.mark.parametrize(
    ("function", "count", "most"),
    [
        (one_by_one, 10, 1),
        (by_mapping, 10, 1),
        (every_reduction, 10, 1),
        pytest.param(one_by_one, 100, 1, marks=pytest.mark.slow),
        (by_mapping, 100, 1),
    ],
)
def test_scalars_add_next_to_no_launches(fake_cuda, function, count, most):
    before = fake_cuda.launches(bound(untracked, count), arguments)
    assert fake_cuda.launches(bound(function, count), arguments) - before in range(most + 1)


def test_bins_add_one_launch_a_call(fake_cuda):
    def make():
        return arguments(populations=4)

    before = fake_cuda.launches(bound(untracked, 1), make)
    assert fake_cuda.launches(bound(with_bins, 1), make) == before + 4
    assert fake_cuda.source(bound(with_bins, 1), make).count("torch.ops.d9d_tracker.histogram_.default(") == 4
