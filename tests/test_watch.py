"""`bins_many` and `watch`: a whole model's histograms."""

from unittest import mock

import pytest
import torch
from torch import nn

from d9d_tracker import Histogram, TrackerTypeError, TrackerValueError


def equal(one: Histogram, other: Histogram) -> bool:
    return (
        one.edges.tolist() == other.edges.tolist()
        and one.counts.tolist() == other.counts.tolist()
        and (one.min, one.max, one.zeros) == (other.min, other.max, other.zeros)
        and one.sum == pytest.approx(other.sum)
    )


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def test_bins_many_equals_as_many_bins(recorded):
    tracker = recorded(sync_every=2)
    values = {"a": torch.randn(30), "b": torch.randn(5, 6).T, "c": torch.arange(7), "empty": torch.empty(0)}
    with tracker.open() as run:
        for step in range(3):
            run.set_step(step)
            run.bins_many(values, {"by": "many"}, every=2)
            for name, tensor in values.items():
                run.bins(name, tensor, {"by": "one"}, every=2)
    for name in values:
        many, one = tracker.run.histograms(name, by="many"), tracker.run.histograms(name, by="one")
        assert list(many) == list(one) == [0, 2]
        assert all(equal(many[step], one[step]) for step in many)


def test_bins_many_refuses_the_whole_call(recorded):
    tracker = recorded()
    with tracker.open() as run:
        with pytest.raises(TrackerTypeError, match="'b'"):
            run.bins_many({"a": torch.ones(2), "b": torch.ones(2, dtype=torch.complex64)})
        with pytest.raises(TrackerValueError, match="name is empty"):
            run.bins_many({"": torch.ones(2)})
        run.bins_many({})
    assert tracker.run.records == []


def test_watch_logs_what_the_optimizer_uses(recorded):
    tracker, model = recorded(sync_every=1), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = {}
    with tracker.open() as run:
        run.watch(model, gradients=True, parameters=True)
        for step in range(3):
            run.set_step(step)
            for _ in range(2):  # micro-batches accumulate
                model(torch.randn(16, 4)).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            for name, parameter in model.named_parameters():
                expected[f"gradients/{name}", step] = Histogram.from_values(parameter.grad)
                expected[f"parameters/{name}", step] = Histogram.from_values(parameter)
            optimizer.step()
            optimizer.zero_grad()
    logged = {(record.name, record.step): record.value for record in tracker.run.records}
    assert logged.keys() == expected.keys()
    assert all(equal(logged[key], expected[key]) for key in expected)


def test_watch_counts_only_the_parameters_of_its_module(recorded):
    tracker, model, other = recorded(), network(), network()
    with tracker.open() as run:
        run.watch(model[0])
        optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1)
        (model(torch.ones(1, 4)) + other(torch.ones(1, 4))).sum().backward()
        optimizer.step()
    assert {record.name for record in tracker.run.records} == {"gradients/weight", "gradients/bias"}


@pytest.mark.parametrize("compiled", [False, True])
def test_watch_counts_activations_of_leaf_modules(recorded, compiled):
    tracker, model = recorded(), network()
    batch = torch.randn(16, 4)
    with tracker.open() as run:
        run.watch(model, gradients=False, activations=True)
        forward = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        forward(batch)
    names = {record.name: record.value for record in tracker.run.records}
    assert names.keys() == {"activations/0", "activations/1", "activations/2"}
    assert equal(names["activations/1"], Histogram.from_values(model[1](model[0](batch))))


def test_watch_counts_the_first_of_several_outputs(recorded):
    tracker, model = recorded(), nn.LSTM(4, 8)
    with tracker.open() as run:
        run.watch(model, gradients=False, activations=True)
        output, _ = model(torch.randn(5, 4))
    (record,) = tracker.run.records
    assert record.name == "activations/LSTM"
    assert equal(record.value, Histogram.from_values(output))


def test_watch_counts_the_values_of_sparse_gradients_and_the_parts_of_complex_numbers(recorded):
    tracker, model = recorded(), nn.Embedding(10, 3, sparse=True)
    model.phase = nn.Parameter(torch.tensor([1 + 2j, 3 - 4j]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (model(torch.tensor([1, 1, 7])).sum() + model.phase.abs().sum()).backward()
    with tracker.open() as run:
        run.watch(model, parameters=True)
        optimizer.step()
    found = {record.name: record.value for record in tracker.run.records}
    assert (found["gradients/weight"].count, found["gradients/weight"].max) == (6, 2)
    assert (found["parameters/phase"].min, found["parameters/phase"].max) == (-4, 3)


def test_watch_ends(recorded):
    tracker, model = recorded(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 4)).sum().backward()
    with tracker.open() as run:
        watch = run.watch(model, activations=True)
        watch.remove()
        model(torch.ones(1, 4))
        optimizer.step()
    assert tracker.run.records == []


@pytest.mark.parametrize("compiled", [False, True])
def test_watch_ends_with_its_run(recorded, compiled):
    tracker, model = recorded(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    forward = torch.compile(model, backend="aot_eager") if compiled else model

    def train():
        forward(torch.ones(1, 4)).sum().backward()
        optimizer.step()

    with tracker.open() as run:
        run.watch(model, activations=True)
        train()
    assert len(tracker.run.records) == 7
    train()
    with tracker.open():
        train()
    assert tracker.run.records == []


def test_a_series_is_watched_once(recorded):
    tracker, model = recorded(), network()
    with tracker.open() as run:
        watch = run.watch(model[0])
        with pytest.raises(TrackerValueError, match=r"'gradients/bias' is watched already.*the module that holds both"):
            run.watch(model[2])
        run.watch(model[2], gradients=False, parameters=True)
        watch.remove()
        run.watch(model[2])


def test_what_cannot_be_watched_is_refused(recorded):
    tracker, model = recorded(), network()
    with tracker.open() as run:
        with pytest.raises(TrackerTypeError, match=r"watch takes a torch\.nn\.Module, not str"):
            run.watch("model")
        with pytest.raises(TrackerTypeError, match=r"watch: a binning is .* not str"):
            run.watch(model, binning="exponential")
        with pytest.raises(TrackerValueError, match="watch: every=0 is not a positive int"):
            run.watch(model, every=0)
        with pytest.raises(TrackerValueError, match="a ReLU has nothing to log with gradients=True"):
            run.watch(nn.ReLU())
    with pytest.raises(TrackerValueError, match="watch: the run is closed"):
        run.watch(model)


@pytest.mark.parametrize("how", ["positional", "keyword"])
def test_with_a_closure_the_gradients_are_those_that_it_computed(recorded, how):
    module = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    tracker = recorded(sync_every=1)
    losses = []
    with tracker.open() as run:
        run.watch(module)
        for step in range(4):
            run.set_step(step)

            def closure(step=step):
                optimizer.zero_grad()
                loss = module(torch.full((1, 1), step + 1.0)).sum()
                loss.backward()
                torch.nn.utils.clip_grad_value_(module.parameters(), 3.0)
                return loss

            losses.append(optimizer.step(closure) if how == "positional" else optimizer.step(closure=closure))
    found = {step: histogram.max for step, histogram in tracker.run.histograms("gradients/weight").items()}
    assert found == {0: 1.0, 1: 2.0, 2: 3.0, 3: 3.0}  # clipped, as the optimizer used it
    assert len(losses) == 4
    assert all(isinstance(loss, torch.Tensor) for loss in losses)


def test_of_several_evaluations_the_first_counts(recorded):
    module = torch.nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.LBFGS(module.parameters(), max_iter=5)
    tracker, evaluations = recorded(), []
    with tracker.open() as run:
        run.watch(module)

        def closure():
            optimizer.zero_grad()
            loss = (module(torch.tensor([[1.0, 2.0]])) - 3).square().sum()
            loss.backward()
            evaluations.append(module.weight.grad.clone())
            return loss

        optimizer.step(closure)
    assert len(evaluations) > 1
    histogram = tracker.run.histograms("gradients/weight")[0]
    assert histogram.count == 2
    assert histogram.max == evaluations[0].max().item()


@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel, lambda module: module])
def test_names_are_those_of_the_bare_model(recorded, wrap):
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Linear(2, 1)))
    tracker = recorded()
    with tracker.open() as run:
        watch = run.watch(wrap(module), parameters=True, activations=True)
        names = {name for name, _ in module.named_parameters()}
        assert watch.series == {
            *(f"{kind}/{name}" for kind in ("gradients", "parameters") for name in names),
            "activations/0",
            "activations/1.0",
        }


def test_a_part_that_is_called_module_keeps_its_name(recorded):
    outer = torch.nn.ModuleDict({"module": torch.nn.Linear(1, 1, bias=False)})
    with recorded().open() as run:
        assert run.watch(outer).series == {"gradients/module.weight"}


def test_a_hook_never_ends_the_training(recorded, caplog, monkeypatch):
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    tracker = recorded()
    with tracker.open() as run:
        run.watch(module, activations=True)
        monkeypatch.setattr(run, "bins_many", mock.Mock(side_effect=RuntimeError("out of memory")))
        monkeypatch.setattr(run, "count_at", mock.Mock(side_effect=RuntimeError("out of memory")))
        for step in range(3):
            run.set_step(step)
            module(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    for what in ("an optimizer's step", "activations/0", "activations/1"):
        assert caplog.text.count(f"{what} cannot be counted, and training goes on: out of memory") == 1


def test_what_a_watch_has_no_slot_for_is_dropped_and_said_once(recorded, caplog):
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    tracker = recorded(max_histograms=1)
    with tracker.open() as run:
        run.watch(module, activations=True)
        for step in range(3):
            run.set_step(step)
            module(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    assert caplog.text.count("max_histograms") == 1
    assert tracker.run.histograms("activations/0")


def test_conjugated_gradients_are_counted(recorded):
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    module = torch.nn.Module()
    module.register_parameter("weight", parameter)
    tracker = recorded()
    with tracker.open() as run:
        run.watch(module)
        parameter.grad = torch.full((3,), 1 + 2j).conj()
        torch.optim.SGD([parameter], lr=0.1).step()
    histogram = tracker.run.histograms("gradients/weight")[0]
    assert (histogram.min, histogram.max, histogram.count) == (-2.0, 1.0, 6)
