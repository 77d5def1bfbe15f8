"""The steps that a gradient scaler skips."""

import math

import torch
from torch import nn

from d9d_tracker.watch import skipped_steps


def train(run, losses):
    module = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    run.watch(module)
    for step, factor in enumerate(losses):
        run.set_step(step)
        scaler.scale(module(torch.ones(1, 1)).sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


def test_the_gradients_of_a_skipped_step_are_counted_apart(recorded):
    tracker = recorded(sync_every=1)
    with tracker.open() as run:
        train(run, [1.0, math.inf, 2.0])
    used = tracker.run.histograms("gradients/weight")
    skipped = tracker.run.histograms("gradients/weight", amp="skipped")
    assert {step: histogram.max for step, histogram in used.items()} == {0: 1.0, 2: 2.0}
    assert list(skipped) == [1]
    assert (skipped[1].count, skipped[1].posinf + skipped[1].neginf + skipped[1].nan) == (0, 1)


def test_a_scaler_is_as_before_when_nobody_watches(recorded):
    tracker = recorded()
    with tracker.open() as run:
        train(run, [1.0])
    assert not skipped_steps._hooks


def test_a_hook_hears_of_its_optimizer_only_when_it_did_not_step():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer, scaler, heard = torch.optim.SGD([weight], lr=0.1), torch.amp.GradScaler("cpu"), []
    handle = skipped_steps.register_skipped_step_hook(heard.append)
    for gradient in (1.0, math.nan, 1.0):
        scaler.scale(torch.ones(()))  # creates the scale
        weight.grad = torch.full((1,), gradient)
        scaler.step(optimizer)
        scaler.update()
    handle.remove()
    assert heard == [optimizer]


def test_what_others_put_in_place_of_the_scalers_step_stays(monkeypatch):
    theirs, original = [], torch.amp.GradScaler.step

    def step(self, optimizer, *args, **kwargs):
        theirs.append(optimizer)
        return original(self, optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.amp.GradScaler, "step", step)
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    optimizer, scaler, heard = torch.optim.SGD([weight], lr=0.1), torch.amp.GradScaler("cpu"), []
    handles = [skipped_steps.register_skipped_step_hook(heard.append) for _ in range(2)]
    scaler.scale(torch.ones(()))
    scaler.step(optimizer)
    for handle in handles:
        handle.remove()
    assert theirs == [optimizer]
    assert heard == []
