"""What norms are called, and which are summed."""

import math

import pytest
import torch
from norms_by_hand import norm, total
from torch import nn

from d9d_tracker import TrackerTypeError
from d9d_tracker.watch.norm_series import NormSeries, grouping


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (None, ["embed.weight", "h.0.attn.q.weight", "h.11.mlp.0.bias", "0.weight", "scale"]),
        ("block", ["embed", "h.0", "h.11", "0", "scale"]),
        (1, ["embed", "h", "h", "0", "scale"]),
        (3, ["embed.weight", "h.0.attn", "h.11.mlp", "0.weight", "scale"]),
        (lambda name: "norms" if name == "scale" else "rest", ["rest", "rest", "rest", "rest", "norms"]),
    ],
)
def test_groups(group, expected):
    names = ["embed.weight", "h.0.attn.q.weight", "h.11.mlp.0.bias", "0.weight", "scale"]
    assert [grouping(group)(name) for name in names] == expected


@pytest.mark.parametrize("group", ["blocks", 1.5, True, lambda name: None])
def test_what_is_no_group_is_refused(recorded, group):
    with recorded().open() as run, pytest.raises(TrackerTypeError, match="group"):
        run.watch(nn.Linear(1, 1), norms=True, group=group)


def test_a_parameter_goes_into_its_group_and_into_all():
    series = NormSeries("a/norms/", 2.0, grouping("block"), ratios=True)
    assert series.make("gradients/h.0.weight", ()).sums == (("a/norms/gradients/h.0", 1), ("a/norms/gradients", 1))
    assert series.make("parameters/h.0.weight", ()).sums[2:] == (("a/norms/ratios/h.0", -1), ("a/norms/ratios", -1))
    assert series.make("updates/h.0.weight", ()).sums[2:] == (("a/norms/ratios/h.0", 1), ("a/norms/ratios", 1))


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_norms_of_groups(recorded, p):
    tracker = recorded()
    model = nn.Sequential(*[nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(2)])
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    with tracker.open() as run:
        watch = run.watch(model, gradients=False, norms=True, group="block", p=p)
        written = set(watch.series)
        torch.optim.SGD(model.parameters(), lr=0.0).step()
    found = {one.name: one.value for one in tracker.run.records}
    assert found.keys() == written
    assert found.keys() == {f"norms/{kind}{name}" for kind in ("gradients", "parameters") for name in ("", "/0", "/1")}
    for index, block in enumerate(model):
        expected = total([norm(one.grad, p) for one in block.parameters()], p)
        assert found[f"norms/gradients/{index}"] == pytest.approx(expected, rel=1e-6)


def test_another_group_or_updates_after_a_resume(recorded):
    model = nn.Linear(2, 2)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer, first, second = torch.optim.SGD(model.parameters(), lr=0.1), recorded(), recorded()
    with first.open() as run:
        run.watch(model, gradients=False, norms=True)
        optimizer.step()
        run.set_step(1)
        state = first.tracker.state_dict()
    second.tracker.load_state_dict(state)
    with second.open() as run:
        run.watch(model, gradients=False, norms=True, updates=True, group=lambda name: "all of it")
        optimizer.step()
    kinds = ("gradients", "parameters", "updates", "ratios")
    assert {one.name for one in second.run.records if one.step == 1} == {
        *(f"norms/{kind}" for kind in kinds),
        *(f"norms/{kind}/all of it" for kind in kinds),
    }
