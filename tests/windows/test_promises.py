"""A watch that counts nothing says so."""

import re

import torch
from torch import nn


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if "nothing was counted" in record.getMessage()]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))


def train(run, module, optimizer, steps, first=0):
    for step in range(first, steps):
        run.set_step(step)
        module(torch.ones(1, 2)).sum().backward()
        if optimizer is not None:
            optimizer.step()


def test_no_optimizer_has_stepped(recorded, caplog):
    with recorded(sync_every=3).open() as run:
        run.watch(network())
        train(run, network(), None, 10)
    (said,) = warnings(caplog)
    # Windows that come soon are looked at together.
    assert re.search(r"by step [2589], nothing was counted of gradients/0.bias, gradients/0.weight", said)
    assert "no optimizer has stepped" in said


def test_copies_in_float32(recorded, caplog):
    module = network()
    masters = [parameter.detach().clone().requires_grad_() for parameter in module.parameters()]
    for master in masters:
        master.grad = torch.ones_like(master)
    with recorded(sync_every=3).open() as run:
        run.watch(module)
        train(run, module, torch.optim.SGD(masters, lr=0.1), 10)
    (said,) = warnings(caplog)
    assert "hold other tensors than the module's parameters, copies in float32 for example" in said


def test_a_layer_that_never_runs_and_a_parameter_without_a_gradient(recorded, caplog):
    module = network()
    module.unused = nn.Linear(2, 2)
    module.forward = lambda batch: module[1](module[0](batch))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with recorded(sync_every=3).open() as run:
        run.watch(module, activations=True)
        train(run, module, optimizer, 10)
    said = sorted(warnings(caplog))
    assert len(said) == 2
    assert "of activations/unused: no forward in training mode reached it" in said[0]
    assert "of gradients/unused.bias, gradients/unused.weight: no gradient reached it" in said[1]


def test_a_watch_that_counts_says_nothing(recorded, caplog):
    module = network()
    module[0].bias.requires_grad_(False)  # is not promised
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with recorded(sync_every=3).open() as run:
        run.set_step(1)  # the window that has begun is none to judge by
        run.watch(module, parameters=True, activations=True)
        run.set_step(2)
        train(run, module, optimizer, 20, first=3)
    assert warnings(caplog) == []


def test_a_cadence_wider_than_a_window_is_waited_for(recorded, caplog):
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with recorded(sync_every=2).open() as run:
        run.watch(module, every=10)
        for step in range(12):
            run.set_step(step)
            if step > 7:
                module(torch.ones(1, 2)).sum().backward()
                optimizer.step()
    assert warnings(caplog) == []


def test_a_watch_that_begins_between_steps_has_the_next_one(recorded, caplog):
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with recorded(sync_every=1).open() as run:
        for first in (1, 5):
            watch = run.watch(module)
            train(run, module, optimizer, first + 4, first)
            watch.remove()
        run.watch(nn.Sequential(network()))  # under other names, which nothing has counted in step 8
        train(run, module, optimizer, 11, 9)
    (said,) = warnings(caplog)
    assert "by step 9, nothing was counted" in said
