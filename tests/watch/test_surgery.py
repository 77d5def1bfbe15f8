"""A model that changes while it is watched: names are those of the model as it is, and nothing is counted twice."""

import pytest
import torch
from torch import nn

from d9d_tracker.testing import RecordingRun


def counts(run: RecordingRun, name: str) -> dict[int, int]:
    return {step: histogram.count for step, histogram in run.histograms(name).items()}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_head_that_is_replaced_while_the_old_optimizer_goes_on(recorded, compiled):
    tracker, model = recorded(sync_every=1), network()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01)]
    forward = torch.compile(model, backend="eager") if compiled else model
    with tracker.open() as run:
        run.watch(model, parameters=True, activations=True)
        for step in range(6):
            run.set_step(step)
            if step == 3:
                model[2] = nn.Linear(6, 3)
                optimizers.append(torch.optim.SGD(model[2].parameters(), lr=0.01))
            forward(torch.randn(5, 4)).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    before, after = dict.fromkeys(range(3), 12), dict.fromkeys(range(3, 6), 18)
    assert counts(tracker.run, "parameters/2.weight") == before | after
    assert counts(tracker.run, "gradients/2.weight") == before | after
    # Compiled code calls the layers that it was compiled with: they are looked at when an optimizer steps.
    activations = dict.fromkeys(range(3), 10) | dict.fromkeys(range(4 if compiled else 3, 6), 15)
    assert counts(tracker.run, "activations/2") == activations
    assert counts(tracker.run, "activations/0") == dict.fromkeys(range(6), 30)


def test_layers_that_are_inserted_and_deleted(recorded):
    tracker = recorded(sync_every=1)
    model = nn.ModuleList([nn.Linear(1, 1, bias=False)])
    nn.init.constant_(model[0].weight, 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with tracker.open() as run:
        watch = run.watch(model, gradients=False, parameters=True, activations=True)
        for step in range(6):
            run.set_step(step)
            if step == 2:
                model.insert(0, nn.Linear(1, 1, bias=False))
                nn.init.constant_(model[0].weight, 5.0)
                optimizer.add_param_group({"params": list(model[0].parameters())})
            if step == 4:
                del model[0]
            values = torch.ones(1, 1)
            for layer in model:
                values = layer(values)
            values.sum().backward()
            optimizer.step()
            kinds = ("activations/", "parameters/")
            assert watch.series == {
                *(f"{kind}{index}{'.weight' * (kind == kinds[1])}" for kind in kinds for index in range(len(model)))
            }
    found = {
        name: {step: one.min for step, one in tracker.run.histograms(f"parameters/{name}.weight").items()}
        for name in "01"
    }
    assert found == {"0": {0: 1, 1: 1, 2: 5, 3: 5, 4: 1, 5: 1}, "1": {2: 1, 3: 1}}
    # Nobody calls the model itself, so its layers are looked at when one of them is not where it was.
    assert list(tracker.run.histograms("activations/1")) == [2, 3]


def test_a_step_of_surgery_counts_each_parameter_once(recorded):
    tracker, model = recorded(sync_every=1), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with tracker.open() as run:
        run.watch(model, gradients=False, parameters=True)
        for step in range(3):
            run.set_step(step)
            if step == 1:
                model.insert(0, nn.Linear(4, 4))
                optimizer.add_param_group({"params": list(model[0].parameters())})
            optimizer.step()
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for step in (1, 2):
        counted = {record.name: record.value.count for record in tracker.run.records if record.step == step}
        assert counted == {f"parameters/{name}": size for name, size in sizes.items()}


def test_new_layers_that_nobody_calls_are_named(recorded, caplog):
    tracker, model = recorded(sync_every=2), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.forward = lambda batch: model[2](model[1](model[0](batch)))
    with tracker.open() as run:
        run.watch(model, activations=True)
        for step in range(10):
            run.set_step(step)
            if step == 4:
                model.append(nn.Linear(2, 2))
            model(torch.ones(1, 4)).sum().backward()
            optimizer.step()
    said = [record.getMessage() for record in caplog.records if "nothing was counted" in record.getMessage()]
    assert sorted(line.partition(" of ")[2] for line in said) == [
        "activations/3: no forward in training mode reached it"
    ]


def test_of_what_has_left_nothing_is_awaited(recorded, caplog):
    tracker, model = recorded(sync_every=2), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracker.open() as run:
        run.watch(model, activations=True, every=4)
        model[0] = nn.Identity()
        model[2] = nn.Identity()
        model.append(nn.Linear(4, 1))
        optimizer.add_param_group({"params": list(model[3].parameters())})
        for step in range(10):
            run.set_step(step)
            model(torch.ones(1, 4)).sum().backward()
            optimizer.step()
    assert "nothing was counted" not in caplog.text


def test_freezing_and_unfreezing(recorded):
    tracker, model = recorded(sync_every=1), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracker.open() as run:
        run.watch(model)
        for step in range(4):
            run.set_step(step)
            model[0].requires_grad_(step % 2 == 0)
            optimizer.zero_grad()
            model(torch.ones(1, 4)).sum().backward()
            optimizer.step()
    assert list(tracker.run.histograms("gradients/0.weight")) == [0, 2]
    assert list(tracker.run.histograms("gradients/2.weight")) == [0, 1, 2, 3]


class LoRA(nn.Module):
    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Linear(base.in_features, 1, bias=False)
        self.b = nn.Linear(1, base.out_features, bias=False)

    def forward(self, values):
        return self.base(values) + self.b(self.a(values))


def test_adapters_that_are_put_around_layers(recorded):
    tracker, model = recorded(sync_every=1), network()
    with tracker.open() as run:
        watch = run.watch(model, activations=True)
        for step in range(3):
            run.set_step(step)
            if step == 1:
                model[0] = LoRA(model[0])
            optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
            model(torch.ones(1, 4)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert list(tracker.run.histograms("gradients/0.weight")) == [0]
    assert list(tracker.run.histograms("gradients/0.a.weight")) == [1, 2]
    assert list(tracker.run.histograms("activations/0")) == [0]
    assert list(tracker.run.histograms("activations/0.base")) == [1, 2]
    assert watch.series == set()  # the run is over


def test_what_lies_elsewhere_is_named_and_the_rest_is_counted(recorded, caplog):
    tracker = recorded(sync_every=1)
    model = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1, device="meta")])
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    with tracker.open() as run:
        run.watch(model, parameters=True)
        for step in range(2):
            run.set_step(step)
            optimizer.step()
    assert {record.name for record in tracker.run.records} == {
        *("gradients/0.weight", "gradients/0.bias", "parameters/0.weight", "parameters/0.bias")
    }
    assert caplog.text.count("gradients/1.weight and 3 more cannot be counted") == 1
    assert "it is on meta, where it has no values" in caplog.text


def breaks_of_a_compiled_optimizer(run, watched: bool) -> list[int]:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    breaks, model = [], network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    watch = run.watch(model, parameters=True) if watched else None
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    for index in range(4):
        run.set_step(index)
        if index == 2:
            model.insert(0, nn.Linear(4, 4))
        model(torch.ones(1, 4)).sum().backward()
        step()
        breaks.append(sum(counters["graph_break"].values()))
    if watch is not None:
        watch.remove()
    return breaks


def test_an_optimizer_that_is_compiled_has_the_names_of_now_and_no_breaks_of_ours(recorded):
    with recorded().open() as run:
        without = breaks_of_a_compiled_optimizer(run, watched=False)
    tracker = recorded(sync_every=1)
    with tracker.open() as run:
        breaks = breaks_of_a_compiled_optimizer(run, watched=True)
    assert breaks[0] == breaks[1] == without[0]
    assert breaks[2] == breaks[3] <= 2 * without[0]  # names are constants: torch's own break again, for those of now
    assert list(tracker.run.histograms("gradients/0.weight")) == [0, 1]
    assert list(tracker.run.histograms("gradients/1.weight")) == [2, 3]
    assert list(tracker.run.histograms("parameters/2.bias")) == [0, 1]
    assert list(tracker.run.histograms("parameters/3.bias")) == [2, 3]
