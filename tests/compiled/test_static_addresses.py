"""What CUDA graphs need of the buffers, as far as it shows without a GPU: static, aligned addresses, all their life."""

from unittest import mock

import numpy as np
import pytest
import torch
from torch._inductor.output_code import CompiledFxGraph
from torch._inductor.utils import remove_unaligned_input_idxs

from d9d_tracker import LinearBinning, TrackerValueError


def compile_and_look(function, *arguments):
    """Compile and run; return for each graph its mutated inputs, and which inputs it takes for static and aligned."""
    inputs, graphs = {}, []
    post_compile, call = CompiledFxGraph.post_compile, CompiledFxGraph.__call__

    def look_at_graph(self, *args):
        graphs.append(self)
        return post_compile(self, *args)

    def look_at_inputs(self, values):
        inputs.setdefault(id(self), list(values))
        return call(self, values)

    with (
        mock.patch.object(CompiledFxGraph, "post_compile", look_at_graph),
        mock.patch.object(CompiledFxGraph, "__call__", look_at_inputs),
    ):
        loss = torch.compile(function, fullgraph=True, options={"fx_graph_cache": False})(*arguments)
        if loss.requires_grad:
            loss.backward()
    looked = []
    for graph in graphs:
        values = inputs[id(graph)]
        static = graph.fx_kwargs.get("static_input_idxs") or ()
        looked.append(([values[index] for index in graph.mutated_input_idxs], graph.mutated_input_idxs, values, static))
    return looked


def log(run, inputs):
    run.scalar("a", inputs.sum())
    run.scalars({"b": inputs.amax(), "c": inputs.mean()}, reduce="max")
    run.bins("d", inputs)
    run.bins("e", inputs, binning=LINEAR, every=2)
    return (inputs * 2).sum()


LINEAR = LinearBinning(low=0, high=1, bins=4)


def is_skipped(mutated, values, static) -> bool:
    """Decide as CUDA-graph trees do: a graph that changes an input without a static address is skipped."""
    return not set(mutated) <= set(remove_unaligned_input_idxs(values, static))


@pytest.mark.parametrize("gradients", [False, True])
def test_every_mutated_input_is_static_and_aligned(recorded, gradients):
    tracker = recorded()
    with tracker.open() as run:
        looked = compile_and_look(log, run, torch.randn(8, requires_grad=gradients))
    assert len(looked) == 1 + gradients
    tensors, mutated, values, static = looked[0]
    bank = run.buffers.histograms
    expected = {run.buffers.scalars.current.data_ptr(), bank.counts.data_ptr(), bank.moments.data_ptr()}
    assert expected <= {tensor.data_ptr() for tensor in tensors}
    assert not is_skipped(mutated, values, static)
    assert all(not is_skipped(mutated, values, static) for _, mutated, values, static in looked)


def test_the_check_itself_sees_a_buffer_that_is_not_static():
    class Holder:
        buffer = torch.zeros(8)

    def change(inputs):
        Holder.buffer.add_(inputs)
        return inputs.sum()

    ((_, mutated, values, static),) = compile_and_look(change, torch.ones(8))
    assert is_skipped(mutated, values, static)


def addresses(run):
    bank, scalars = run.buffers.histograms, run.buffers.scalars
    tensors = (scalars.current, scalars.window, bank.counts, bank.moments, bank.partials, run.buffers.device_step)
    return [tensor.data_ptr() for tensor in tensors]


def test_addresses_hold_for_life_and_are_aligned(recorded):
    tracker = recorded(sync_every=2)
    with tracker.open() as run:
        before = addresses(run)
        for step in range(5):
            run.set_step(step)
            log(run, torch.ones(8))
        run.flush()
        state = tracker.tracker.state_dict()
    with tracker.open() as again:
        assert addresses(again) == before
    tracker.tracker.load_state_dict(state)
    with tracker.open() as resumed:
        log(resumed, torch.ones(8))
        assert addresses(resumed) == before
    assert all(address % 16 == 0 for address in before)


@pytest.mark.parametrize("method", ["set_step", "flush"])
def test_what_a_replay_would_miss_is_refused_during_capture(recorded, method):
    tracker = recorded()
    with tracker.open() as run:
        cuda = mock.Mock(type="cuda")
        with (
            mock.patch.object(run.buffers, "device", cuda),
            mock.patch.object(run.buffers, "is_gpu", True),
            mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=True),
            pytest.raises(TrackerValueError, match=f"{method} was called while a CUDA graph is captured"),
        ):
            run.set_step(1) if method == "set_step" else run.flush()


def test_a_value_on_the_cpu_is_refused_during_capture(recorded):
    tracker = recorded()
    with (
        tracker.open() as run,
        mock.patch.object(run.buffers, "device", torch.device("cuda:0")),
        mock.patch.object(run.buffers, "is_gpu", True),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=True),
        pytest.raises(TrackerValueError, match=r"'loss'.*on the CPU.*replay"),
    ):
        run.scalar("loss", torch.ones(()))


@pytest.mark.parametrize(
    ("value", "weight"), [(0.5, None), (True, None), (np.float32(0.5), None), (torch.ones(()), 2.0)]
)
def test_a_python_number_is_refused_during_capture(recorded, value, weight):
    """A replay would log it again as it was."""
    tracker = recorded()
    with (
        tracker.open() as run,
        mock.patch.object(run.buffers, "device", torch.device("cuda:0")),
        mock.patch.object(run.buffers, "is_gpu", True),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=True),
        mock.patch.object(torch.Tensor, "device", torch.device("cuda:0")),
        pytest.raises(TrackerValueError, match=r"'loss.*Python number.*replay"),
    ):
        run.scalar("loss", value, weight=weight)
