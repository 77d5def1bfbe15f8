"""One graph and no more: what changes from call to call must not be compiled in."""

import math

import pytest
import torch
from torch import nn


class Model(nn.Module):
    """Logs from its forward, from a submodule, from a function and from gradient hooks."""

    def __init__(self, run):
        super().__init__()
        self.run = run
        self.first, self.second = Block(run), Block(run)

    def forward(self, inputs, rate):
        hidden = self.second(self.first(inputs))
        hidden.register_hook(lambda gradient: log_gradient(self.run, gradient))
        loss = hidden.square().mean()
        self.run.scalar("loss", loss)
        self.run.scalar("rate", rate, reduce="last")
        self.run.scalars({"a": hidden.sum(), "b": hidden.amax()}, {"kind": "extra"}, reduce="max", weight=None)
        return loss


class Block(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.run = run
        self.linear = nn.Linear(4, 4)

    def forward(self, inputs):
        hidden = self.linear(inputs)
        self.run.bins("hidden", hidden, every=2)
        return hidden.relu()


def log_gradient(run, gradient):
    run.scalar("gradient", gradient.norm())
    run.bins("gradients", gradient)


def train(run, forward, model, steps, first=0):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(first, first + steps):
        run.set_step(step)
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        forward(torch.randn(3, 4), optimizer.param_groups[0]["lr"]).backward()
        optimizer.step()
        optimizer.zero_grad()


def build(run):
    torch.manual_seed(1)
    return Model(run)


def same(one, other):
    return one.keys() == other.keys() and all(one[key] == pytest.approx(other[key], rel=1e-6) for key in one)


def test_one_graph_for_a_thousand_steps_and_a_second_run(recorded, graphs, logged):
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        tracker = recorded(sync_every=20, max_histograms=8, max_scalars=16)
        model = forward = None
        for name, steps in (("first", 1000), ("second", 30)):
            with tracker.open(name) as run:
                if model is None:
                    model = build(run)
                    forward = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
                train(run, forward, model, steps)
            results.append(logged(tracker.run))
    assert graphs() == 1
    assert len(results[2]) == 1000 * 5 + 50 * 2
    assert results[0] == results[2]
    assert results[1] == results[3]


def test_inductor_gives_the_points_of_the_eager_loop(recorded, graphs, logged):
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        tracker = recorded(sync_every=3)
        with tracker.open() as run:
            model = build(run)
            train(run, torch.compile(model, fullgraph=True) if compiled else model, model, 7)
        results.append(logged(tracker.run))
    assert graphs() == 1
    assert same(*results)


@pytest.mark.parametrize("values", [(0.1, 0.2, 1e-30, 0.0, 7.0), (5, 6, 2**40), (0.25, 3, 0.5)])
def test_a_changing_number_takes_no_second_graph(recorded, graphs, values):
    # An int and a float differ in type, over which there is no way around a second graph.
    tracker = recorded()
    with tracker.open() as run:

        @torch.compile(fullgraph=True, backend="aot_eager")
        def log(inputs, value):
            run.scalar("value", value)
            run.scalar("weighted", inputs.sum(), weight=value)
            return inputs * 2

        for step, value in enumerate(values):
            run.set_step(step)
            log(torch.ones(2), value)
    assert tracker.run.points("value") == {step: float(value) for step, value in enumerate(values)}
    assert graphs() == len({type(value) for value in values})


def test_a_changing_number_read_inside_takes_no_second_graph(recorded, graphs):
    class Schedule:
        rate = 0.1

    tracker, schedule, module = recorded(), Schedule(), nn.Module()
    rates = [0.1 / (step + 1) for step in range(20)]
    with tracker.open() as run:

        @torch.compile(fullgraph=True, backend="aot_eager")
        def log(inputs):
            run.scalar("of an object", schedule.rate)
            run.scalar("of a module", module.rate)
            return inputs * 2

        for step, rate in enumerate(rates):
            run.set_step(step)
            schedule.rate = module.rate = rate
            log(torch.ones(2))
    assert tracker.run.points("of an object") == tracker.run.points("of a module") == dict(enumerate(rates))
    assert graphs() == 1


@torch._dynamo.config.patch(capture_scalar_outputs=True)
def test_a_number_that_the_code_computes_is_logged_and_costs_no_graph(recorded, graphs):
    tracker = recorded()
    with tracker.open() as run:
        handle = run.scalar_series("by handle")

        @torch.compile(fullgraph=True, backend="aot_eager")
        def log(inputs):
            large = inputs > 0.5
            count = large.sum().item()
            run.scalars({"count": count, "is any": large.any().item(), "total": inputs.sum().item()})
            run.scalar("weighted", inputs.max(), weight=count)
            handle.scalar(count)
            return inputs * 2

        for step in range(4):
            run.set_step(step)
            log(torch.arange(4.0) < step)
    counts = {step: float(step) for step in range(4)}
    points = tracker.run.points
    assert points("count") == points("by handle") == points("total") == counts
    assert points("is any") == points("weighted") | {0: 0.0} == {0: 0.0, 1: 1.0, 2: 1.0, 3: 1.0}
    assert graphs() == 1


def test_a_rate_read_from_an_optimizer_inside_takes_one_more_graph(recorded, graphs):
    # Dynamo looks at all values of an optimizer when it meets the optimizer, before they are logged.
    tracker = recorded()
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    rates = [0.1 / (step + 1) for step in range(20)]
    with tracker.open() as run:

        @torch.compile(fullgraph=True, backend="aot_eager")
        def log(inputs):
            run.scalar("rate", optimizer.param_groups[0]["lr"])
            return inputs * 2

        for step, rate in enumerate(rates):
            run.set_step(step)
            optimizer.param_groups[0]["lr"] = rate
            log(torch.ones(2))
    assert tracker.run.points("rate") == dict(enumerate(rates))
    assert graphs() <= 2


def test_the_shapes_of_the_users_tensors_stay_static(recorded):
    seen = []

    def backend(module, inputs):
        seen.extend(type(size) for value in inputs if isinstance(value, torch.Tensor) for size in value.shape)
        return module.forward

    tracker = recorded()
    with tracker.open() as run:

        @torch.compile(fullgraph=True, backend=backend)
        def log(value, population):
            run.scalar("value", value)
            run.bins("population", population)
            return population * 2

        log(torch.ones(1), torch.ones(5, 6))
    assert set(seen) == {int}


def test_a_name_first_seen_in_a_later_function_leaves_the_earlier_graphs_alone(recorded, graphs):
    tracker = recorded()
    with tracker.open() as run:

        def logging(name):
            def log(inputs):
                run.scalar(name, inputs.sum())
                run.bins(name + " values", inputs)
                return inputs * 2

            return torch.compile(log, fullgraph=True, backend="aot_eager")

        one, other = logging("one"), logging("other")
        one(torch.ones(2))
        other(torch.ones(3))
        run.scalar("eager", 1.0)
        one(torch.ones(2))
        other(torch.ones(3))
    assert graphs() == 2
    assert tracker.run.points("one") == {0: 2.0}
    assert tracker.run.points("other") == {0: 3.0}
    assert tracker.run.histograms("one values")[0].count == 4
    assert tracker.run.histograms("other values")[0].count == 6


def test_many_names_share_one_write_in_any_order_of_slots(recorded, graphs):
    tracker = recorded()
    with tracker.open() as run:
        for name in ("c", "x", "a"):
            run.scalar(name, -1.0, reduce="max")

        @torch.compile(fullgraph=True)
        def log(inputs):
            values = inputs.unbind()
            run.scalars(dict(zip("abcde", values, strict=True)), reduce="max")
            run.scalars(dict(zip("pqr", values, strict=False)), weight=values[1])
            run.scalars({"last": values[2], "number": 3.5}, reduce="last")
            run.scalars({"min": values[0], "other": values[4]}, reduce="min")
            return inputs * 2

        log(torch.tensor([1.0, 2.0, 3.0, float("nan"), -4.0]))
    points = {record.name: record.value for record in tracker.run.records}
    assert math.isnan(points.pop("d"))
    maxima = {"c": 3.0, "x": -1.0, "a": 1.0, "b": 2.0, "e": -4.0}
    means = {"p": 1.0, "q": 2.0, "r": 3.0}
    assert points == maxima | means | {"last": 3.0, "number": 3.5, "min": 1.0, "other": -4.0}
    assert graphs() == 1


def test_cadence_takes_no_second_graph(recorded, graphs):
    tracker = recorded(sync_every=3, bins_every=4)
    with tracker.open() as run:

        @torch.compile(fullgraph=True, backend="aot_eager")
        def log(inputs):
            run.bins("every third", inputs, every=3)
            run.bins("by default", inputs)
            return inputs * 2

        for step in range(12):
            run.set_step(step)
            log(torch.full((2,), float(step)))
    logged = {name: tracker.run.histograms(name) for name in ("every third", "by default")}
    assert {step: h.sum for step, h in logged["every third"].items()} == {0: 0.0, 3: 6.0, 6: 12.0, 9: 18.0}
    assert {step: h.sum for step, h in logged["by default"].items()} == {0: 0.0, 4: 8.0, 8: 16.0}
    assert graphs() == 1
