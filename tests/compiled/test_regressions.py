"""What the compiler, or CUDA graphs, are known to get wrong or to limit, with logging in the middle of it."""

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config
from torch.nn.attention.flex_attention import create_block_mask, flex_attention


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_logged_clone_keeps_its_values_when_the_source_is_changed_afterwards(recorded, backend):
    """See pytorch#198031."""
    tracker = recorded()
    with tracker.open() as run:

        def step(buffer, inputs):
            before = buffer.clone()
            buffer.add_(inputs)
            run.scalar("sum", before.sum())
            run.bins("before", before)
            handle.scalar(before.amax())
            buffer.mul_(2)
            return buffer.sum()

        handle = run.scalar_series("largest", reduce="max")
        call = torch.compile(step, fullgraph=True, backend=backend)
        buffer = torch.ones(4)
        for number in range(2):
            run.set_step(number)
            call(buffer, torch.full((4,), 2.0))
    assert tracker.run.points("sum") == {0: 4.0, 1: 24.0}  # 1, then (1 + 2) * 2
    assert tracker.run.points("largest") == {0: 1.0, 1: 6.0}
    assert sum(h.sum for h in tracker.run.histograms("before").values()) == 28.0


def test_more_shapes_than_cuda_graphs_are_recorded_for_still_share_one_graph(recorded, graphs):
    """Beyond ``cudagraph_dynamic_shape_rerecord_limit`` shapes, calls mix replays with runs that are not replays.

    That both write to the same addresses is what makes it right, and what shows without a GPU.
    """
    limit = getattr(config.triton, "cudagraph_dynamic_shape_rerecord_limit", None) or 8
    tracker = recorded(sync_every=1000)
    with tracker.open() as run:

        def step(inputs):
            run.scalar("sum", inputs.sum())
            run.bins("inputs", inputs)
            return inputs * 2

        call = torch.compile(step, fullgraph=True, dynamic=True)
        addresses = set()
        for number in range(2 * limit + 2):
            run.set_step(number)
            call(torch.ones(2 + number))
            bank = run.buffers.histograms
            addresses.add((run.buffers.scalars.current.data_ptr(), bank.counts.data_ptr(), bank.moments.data_ptr()))
    assert graphs() == 1
    assert len(addresses) == 1
    assert tracker.run.points("sum") == {number: 2.0 + number for number in range(2 * limit + 2)}


def test_compiled_autograd_logs_each_gradient_once(recorded):
    tracker = recorded()
    linear = torch.nn.Linear(4, 4)
    with torch._dynamo.config.patch(compiled_autograd=True), tracker.open() as run:
        handle = run.bins_series("gradient")
        linear.weight.register_hook(lambda gradient: run.scalar("norm", gradient.sum()))
        linear.weight.register_hook(lambda gradient: handle.bins(gradient))

        @torch.compile(backend="aot_eager")
        def step(inputs):
            loss = linear(inputs).sum()
            run.scalar("loss", loss)
            loss.backward()
            return loss.detach()

        for number in range(3):
            run.set_step(number)
            linear.zero_grad(set_to_none=True)
            step(torch.ones(2, 4))
    assert tracker.run.points("norm") == {0: 32.0, 1: 32.0, 2: 32.0}
    assert sum(h.count for h in tracker.run.histograms("gradient").values()) == 3 * 16
    assert sorted(tracker.run.points("loss")) == [0, 1, 2]


def test_mark_dynamic_takes_one_graph_for_all_lengths(recorded, graphs):
    tracker = recorded()
    with tracker.open() as run:

        @torch.compile(fullgraph=True, backend="aot_eager")
        def step(inputs):
            run.scalars({"sum": inputs.sum(), "length": inputs.shape[0]}, weight=inputs.shape[0])
            run.bins("inputs", inputs)
            return inputs * 2

        for number, length in enumerate((3, 5, 9, 17)):
            run.set_step(number)
            inputs = torch.ones(length)
            torch._dynamo.mark_dynamic(inputs, 0)
            step(inputs)
    assert graphs() == 1
    assert tracker.run.points("length") == {0: 3.0, 1: 5.0, 2: 9.0, 3: 17.0}
    assert sum(h.count for h in tracker.run.histograms("inputs").values()) == 34


def test_flex_attention(recorded, graphs):
    tracker = recorded()
    torch.manual_seed(0)
    query = torch.randn(1, 2, 128, 16)
    mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, 128, 128, device="cpu")
    plain = lambda query: flex_attention(query, query, query, block_mask=mask)  # noqa: E731 as short as its name
    try:
        with torch.no_grad():
            torch.compile(plain, fullgraph=True)(query)
    except Exception as error:
        pytest.skip(f"this torch cannot compile it for this CPU, without logging: {type(error).__name__}; 2.13 can")
    torch._dynamo.reset()
    counters.clear()
    with tracker.open() as run:

        def step(query):
            out = flex_attention(query, query, query, block_mask=mask)
            run.scalar("mean", out.mean())
            run.bins("out", out)
            return out

        with torch.no_grad():
            out = torch.compile(step, fullgraph=True)(query)
    assert graphs() == 1
    assert not counters["graph_break"]
    assert tracker.run.points("mean") == {0: pytest.approx(out.double().mean().item(), abs=1e-6)}
    assert tracker.run.histograms("out")[0].count == out.numel()
