"""What hooks around optimizers leave behind, and on which steps they count."""

import gc
import math
import weakref

import torch
from torch import nn
from torch.optim import optimizer as optim

from d9d_tracker.watch import skipped_steps

HOOKS = (optim._global_optimizer_pre_hooks, optim._global_optimizer_post_hooks, skipped_steps._hooks)


def hooks() -> list[int]:
    return [len(registered) for registered in HOOKS]


def scaled_step(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, factor: float):
    scaler.scale(model(torch.ones(1, 1)).sum() * factor).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def test_every_skipped_step_counts_whatever_the_cadence(recorded):
    tracker, model = recorded(sync_every=1), nn.Linear(1, 1, bias=False)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.0), torch.amp.GradScaler("cpu", init_scale=2.0**20)
    with tracker.open() as run:
        run.watch(model, every=3)
        for step in range(9):
            run.set_step(step)
            scaled_step(model, optimizer, scaler, math.inf if step in (0, 2, 3, 5, 6) else 1.0)
    assert list(tracker.run.histograms("gradients/weight", amp="skipped")) == [0, 2, 3, 5, 6]
    assert list(tracker.run.histograms("gradients/weight")) == [1, 8]  # of those that were not skipped, every third


def test_an_optimizer_is_not_kept_alive(recorded):
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    model(torch.ones(1, 1)).sum().backward()
    with recorded().open() as run:
        run.watch(model)
        optimizer.step()
        reference = weakref.ref(optimizer)
        del optimizer
        gc.collect()
        assert reference() is None


def test_no_hooks_are_left_by_a_step_of_a_scaler_nor_by_a_watch_that_ends(recorded):
    model = nn.Sequential(nn.Linear(1, 1))
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.0), torch.amp.GradScaler("cpu")
    before = hooks()
    with recorded().open() as run:
        watch = run.watch(model, activations=True)
        during = hooks()
        for factor in (1.0, math.inf, 1.0):
            scaled_step(model, optimizer, scaler, factor)
        assert hooks() == during != before
        watch.remove()
        assert hooks() == before
        assert not model[0]._forward_hooks
        assert not model._forward_pre_hooks
        run.watch(model, activations=True)
    assert hooks() == before
    assert not model[0]._forward_hooks
