"""Logging under what PyTorch does to code around it: autocast, gradients off, torch.func, DDP, hooks."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d9d_tracker import TrackerValueError

BOTH = pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])


def maybe(compiled, function):
    return torch.compile(function, fullgraph=True, backend="aot_eager") if compiled else function


@pytest.fixture
def linear():
    layer = nn.Linear(3, 3, bias=False)
    layer.weight.data = torch.arange(9.0).reshape(3, 3)
    return layer


@BOTH
@pytest.mark.parametrize(
    "around",
    [
        torch.no_grad,
        torch.inference_mode,
        torch.enable_grad,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    ],
    ids=["no_grad", "inference_mode", "enable_grad", "autocast"],
)
@pytest.mark.parametrize("inside", [False, True], ids=["around", "within"])
def test_modes(recorded, linear, compiled, around, inside):
    if compiled and inside and around is torch.inference_mode and torch.__version__.startswith("2.11."):
        pytest.skip(
            "torch 2.11 compiles no linear layer inside torch.inference_mode, and then stays in that mode; 2.13 does"
        )
    tracker = recorded(sync_every=2)
    one = torch.ones(1)

    def log(run, inputs):
        hidden = linear(inputs)
        run.scalar("sum", hidden.sum())
        run.bins("hidden", hidden)
        run.scalars({"one": one, "two": inputs.amax(), "number": 2.5}, reduce="max", weight=None)
        run.bins_many({"inputs": inputs, "weight": linear.weight})
        return hidden

    def log_within(run, inputs):
        with around():
            return log(run, inputs)

    function = maybe(compiled, log_within if inside else log)
    with tracker.open() as run:
        for step in range(3):
            run.set_step(step)
            inputs = torch.full((2, 3), float(step))
            if inside:
                function(run, inputs)
            else:
                with around():
                    function(run, inputs)
        function(run, torch.zeros(2, 3))  # the buffers are writable outside of the mode
    assert tracker.run.points("sum") == {0: 0.0, 1: 72.0, 2: 72.0}
    assert sum(h.sum for h in tracker.run.histograms("hidden").values()) == 72.0 + 144.0


def test_a_tracker_made_in_inference_mode_works_outside(recorded):
    tracker = recorded()
    with torch.inference_mode():
        context = tracker.open()
        run = context.__enter__()
    run.scalar("value", torch.ones(()))
    run.bins("values", torch.ones(2))
    run.set_step(1)
    context.__exit__(None, None, None)
    assert tracker.run.points("value") == {0: 1.0}


@BOTH
def test_func_grad(recorded, linear, compiled):
    tracker = recorded()

    def log(run, weight, inputs):
        def loss(weight):
            hidden = inputs @ weight
            run.scalar("loss", hidden.sum())
            run.scalars({"a": hidden.amax(), "b": 2.5}, reduce="max")
            run.bins("hidden", hidden)
            return hidden.sum()

        gradient, value = torch.func.grad_and_value(loss)(weight)
        run.scalar("gradient", gradient.sum())
        return value

    with tracker.open() as run:
        function = maybe(compiled, log)
        for step in range(2):
            run.set_step(step)
            function(run, linear.weight.detach(), torch.full((2, 3), 1.0 + step))
    assert tracker.run.points("loss") == {0: 72.0, 1: 144.0}
    assert tracker.run.points("a") == {0: 15.0, 1: 30.0}
    assert tracker.run.points("b") == {0: 2.5, 1: 2.5}
    assert tracker.run.points("gradient") == {0: 18.0, 1: 36.0}
    assert tracker.run.histograms("hidden")[1].count == 12


@BOTH
@pytest.mark.parametrize("per_sample_gradient", [False, True])
def test_vmap_is_refused(recorded, compiled, per_sample_gradient):
    tracker = recorded()
    with tracker.open() as run:
        for method in (lambda row: run.scalar("loss", row.sum()), lambda row: run.bins("loss", row)):

            def loss(row, method=method):
                method(row)
                return row.sum()

            each = torch.func.grad(loss) if per_sample_gradient else loss
            with pytest.raises(TrackerValueError, match=r"'loss' was logged inside torch\.vmap"):
                maybe(compiled, lambda inputs, each=each: torch.vmap(each)(inputs))(torch.ones(2, 3))


@BOTH
def test_gradient_hooks(recorded, linear, compiled):
    tracker = recorded()
    with tracker.open() as run:
        linear.weight.register_hook(lambda gradient: run.scalar("leaf", gradient.sum()))
        linear.weight.register_post_accumulate_grad_hook(lambda weight: run.bins("accumulated", weight.grad))

        def forward(inputs):
            hidden = linear(inputs)
            hidden.register_hook(lambda gradient: run.scalar("gradient", gradient.sum()))
            hidden.register_hook(lambda gradient: run.bins("gradients", gradient))
            return hidden.sum()

        function = maybe(compiled, forward)
        for step in range(3):
            run.set_step(step)
            for _ in range(2):
                function(torch.ones(2, 3)).backward()
            linear.weight.grad = None
    assert tracker.run.points("leaf") == dict.fromkeys(range(3), 18.0)
    assert tracker.run.points("gradient") == dict.fromkeys(range(3), 6.0)
    assert tracker.run.histograms("gradients")[2].count == 3 * 2 * 6
    assert tracker.run.histograms("accumulated")[2].sum == 3 * (18.0 + 36.0)


@pytest.mark.parametrize("backend", [None, "aot_eager", "inductor"])
def test_what_comes_between_a_forward_and_its_backward_is_kept(recorded, linear, backend):
    def forward(inputs):
        hidden = linear(inputs)
        run.scalar("sum", inputs.sum(), reduce="sum")
        run.bins("inputs", inputs)
        hidden.register_hook(lambda gradient: run.scalar("gradient", gradient.sum(), reduce="sum"))
        hidden.register_hook(lambda gradient: run.bins("gradients", gradient))
        return hidden.sum()

    tracker = recorded(sync_every=2)
    with tracker.open() as run:
        function = torch.compile(forward, fullgraph=True, backend=backend) if backend else forward
        for step in range(4):
            run.set_step(step)
            first = function(torch.ones(2, 3))
            run.scalar("between", first, reduce="sum")
            run.bins("ones", torch.ones(5))
            second = function(torch.ones(2, 3))
            first.backward()
            second.backward()
    assert tracker.run.points("sum") == tracker.run.points("gradient") == dict.fromkeys(range(4), 12.0)
    assert tracker.run.points("between") == dict.fromkeys(range(4), 72.0)
    histograms = {name: tracker.run.histograms(name)[3] for name in ("inputs", "ones", "gradients")}
    assert {name: (h.count, h.sum) for name, h in histograms.items()} == {
        "inputs": (24, 24.0),
        "ones": (10, 10.0),
        "gradients": (24, 24.0),
    }


@BOTH
def test_a_custom_function_logs_in_its_forward_and_its_backward(recorded, compiled):
    tracker = recorded()
    with tracker.open() as run:

        class Doubled(torch.autograd.Function):
            @staticmethod
            def forward(context, inputs):
                run.scalar("forward", inputs.sum())
                run.bins("forwards", inputs)
                return inputs * 2

            @staticmethod
            def backward(context, gradient):
                run.scalar("backward", gradient.sum())
                run.bins("backwards", gradient)
                return gradient * 2

        function = maybe(compiled, lambda inputs: Doubled.apply(inputs).sum())
        for step in range(2):
            run.set_step(step)
            function(torch.ones(3, requires_grad=True)).backward()
    assert tracker.run.points("forward") == tracker.run.points("backward") == {0: 3.0, 1: 3.0}
    assert tracker.run.histograms("forwards")[1].count == tracker.run.histograms("backwards")[1].count == 6


def test_leaf_hooks_under_compiled_autograd(recorded, linear):
    tracker = recorded()
    with tracker.open() as run:
        linear.weight.register_hook(lambda gradient: run.scalar("leaf", gradient.sum()))

        def forward(inputs):
            run.scalar("sum", inputs.sum())
            return linear(inputs).sum()

        function = maybe(True, forward)
        for step in range(3):
            run.set_step(step)
            loss = function(torch.ones(2, 3))
            with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
                loss.backward()
    assert tracker.run.points("sum") == dict.fromkeys(range(3), 6.0)
    assert tracker.run.points("leaf") == dict.fromkeys(range(3), 18.0)


@pytest.fixture
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@BOTH
@pytest.mark.parametrize("around_ddp", [False, True])
def test_modules_wrapped_in_ddp(recorded, linear, compiled, around_ddp, one_rank):
    class Model(nn.Module):
        def __init__(self, run):
            super().__init__()
            self.run, self.linear = run, linear

        def forward(self, inputs):
            hidden = self.linear(inputs)
            hidden.register_hook(lambda gradient: self.run.scalar("gradient", gradient.sum()))
            self.run.scalar("sum", hidden.sum())
            self.run.bins("hidden", hidden)
            return hidden.sum()

    tracker = recorded()
    with tracker.open() as run:
        if around_ddp:  # torch.compile never makes one graph of DDP itself
            model = DistributedDataParallel(Model(run))
            model = torch.compile(model, backend="aot_eager") if compiled else model
        else:
            model = DistributedDataParallel(maybe(compiled, Model(run)))
        for step in range(3):
            run.set_step(step)
            model(torch.ones(2, 3)).backward()
    assert tracker.run.points("sum") == dict.fromkeys(range(3), 72.0)
    assert tracker.run.points("gradient") == dict.fromkeys(range(3), 6.0)
    assert tracker.run.histograms("hidden")[2].count == 18
