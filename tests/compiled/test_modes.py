"""Code that runs for show, and operators whose bodies may write nothing."""

import pytest
import torch
from torch import nn
from torch._dynamo.exc import UncapturedHigherOrderOpError
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch._subclasses.fake_tensor import FakeTensorMode

from d9d_tracker import TrackerValueError


class Net(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.run, self.handle, self.bins = run, run.scalar_series("handle"), run.bins_series("handle of bins")

    def forward(self, inputs):
        outputs = self.layer(inputs)
        self.run.scalar("loss", outputs.mean())
        self.run.scalars({"n": 1.0})
        self.run.bins("outputs", outputs)
        self.run.counts("counts", (outputs > 0).sum(0))
        self.handle.scalar(outputs.mean())
        self.bins.bins(outputs)
        return outputs


def test_nothing_is_logged_under_a_fake_mode_and_nothing_is_lost_by_it(recorded):
    tracker = recorded()
    with tracker.open() as run:
        real = Net(run)
        with FakeTensorMode(allow_non_fake_inputs=False):
            model = Net(run)
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            watch = run.watch(model, activations=True, norms=True)
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
            watch.remove()
            assert run.scalar_series("made here").entry.slot >= 0
        run.scalar("loss", 1.0)
        with FakeTensorMode(allow_non_fake_inputs=False), run.context(stage="fake"):
            run.set_step(1)
            run.set_context({"stage": "eval"})
            run.flush()
        torch.jit.trace(real, torch.ones(2, 4), check_trace=False)
        run.set_step(2)
        run.scalar("loss", 2.0)
    assert {record.name for record in tracker.run.records} == {"loss"}
    assert tracker.run.points("loss") == {0: 1.0, 2: 2.0}


def in_cond(log, inputs):
    return torch.cond(inputs.sum() > 0, lambda x: (log(x), x * 2)[1], lambda x: x * 3, (inputs,))


def in_scan(log, inputs):
    return scan(lambda carry, x: ((log(x), carry + x)[1], (carry + x).clone()), torch.zeros(4), inputs)


def in_while_loop(log, inputs):
    return while_loop(lambda x: x.sum() < 20, lambda x: ((log(x), x + 1)[1],), (inputs,))


LOGS = {
    "scalar": lambda run: lambda x: run.scalar("x", x.sum()),
    "bins": lambda run: lambda x: run.bins("x", x),
    "handle": lambda run: run.scalar_series("x").scalar,
}


@pytest.mark.parametrize("log", LOGS)
@pytest.mark.parametrize("body", [in_cond, in_scan, in_while_loop])
def test_a_body_that_may_write_nothing_is_refused_by_name(recorded, body, log):
    with recorded().open() as run:
        call = LOGS[log](run)
        # torch 2.11 says what we say in an error of its own
        with pytest.raises((TrackerValueError, UncapturedHigherOrderOpError), match=r"'x'.*log it outside"):
            torch.compile(lambda x: body(call, x), fullgraph=True, backend="aot_eager")(torch.ones(3, 4))


def test_a_watch_lets_such_a_body_be(recorded):
    tracker = recorded()
    layer, other = nn.Linear(4, 4), nn.Linear(4, 4)

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.other = layer, other

        def forward(self, inputs):
            return torch.cond(inputs.sum() > 0, self.layer, lambda x: x * 3, (self.other(inputs),))

    model = Branches()
    with tracker.open() as run:
        run.watch(model, gradients=False, activations=True)
        torch.compile(model, fullgraph=True, backend="aot_eager")(torch.ones(3, 4))
    assert {record.name for record in tracker.run.records} == {"activations/other"}
