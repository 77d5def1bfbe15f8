"""`bins_many` and `watch`: a whole model's histograms."""

import contextlib
import copy
import functools
from unittest import mock

import pytest
import torch
import torch.utils.checkpoint
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


def test_of_several_outputs_the_first_has_the_name_of_the_module(recorded):
    tracker, model = recorded(), nn.LSTM(4, 8)
    with tracker.open() as run:
        run.watch(model, gradients=False, activations=True)
        output, (hidden, cell) = model(torch.randn(5, 4))
    found = {record.name: record.value for record in tracker.run.records}
    expected = {"activations/LSTM": output, "activations/LSTM/1": hidden, "activations/LSTM/1/1": cell}
    assert found.keys() == expected.keys()
    assert all(equal(found[name], Histogram.from_values(expected[name])) for name in found)


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


def test_a_parameter_of_a_type_that_cannot_be_counted_is_left_out_by_name(recorded, caplog):
    tracker, model = recorded(), nn.Linear(2, 2, bias=False)
    model.table = nn.Parameter(torch.zeros(3, dtype=torch.uint16), requires_grad=False)
    with tracker.open() as run:
        run.watch(model, parameters=True, every=1)
        model(torch.ones(1, 2)).sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert {record.name for record in tracker.run.records} == {"gradients/weight", "parameters/weight"}
    words = "watch: parameters/table cannot be counted, and training goes on: its values are of torch.uint16"
    assert [r.message for r in caplog.records if "cannot be counted" in r.message] == [words]


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
        for step in range(3):
            run.set_step(step)
            module(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    for what in ("an optimizer's step", "activations/0", "activations/1"):
        assert caplog.text.count(f"{what} cannot be counted, and training goes on: out of memory") == 1


class Nothing(nn.Module):
    def forward(self, inputs):
        return None


class WithNothing(nn.Module):
    def __init__(self):
        super().__init__()
        self.plain, self.nothing = nn.Linear(4, 4), Nothing()

    def forward(self, inputs):
        self.nothing(inputs)
        return self.plain(inputs)


@pytest.mark.parametrize(
    "call",
    [
        lambda compiled, model, inputs: compiled(model)(inputs),
        lambda compiled, model, inputs: compiled(torch.vmap(model))(inputs),
        lambda compiled, model, inputs: torch.utils.checkpoint.checkpoint(compiled(model), inputs, use_reentrant=False),
    ],
    ids=["an output of nothing", "vmap", "in a checkpoint"],
)
def test_a_hook_in_compiled_code_never_ends_the_training(recorded, call):
    tracker, model, inputs = recorded(), WithNothing(), torch.ones(2, 3, 4, requires_grad=True)
    with tracker.open() as run:
        run.watch(model, gradients=False, activations=True)
        call(functools.partial(torch.compile, fullgraph=True, backend="aot_eager"), model, inputs).sum().backward()
    counted = {record.name: record.value.count for record in tracker.run.records}
    assert counted in ({"activations/plain": 24}, {})
    assert inputs.grad is not None


def test_a_nested_tensor_is_refused_in_compiled_code_and_ends_no_training(recorded):
    compiled = functools.partial(torch.compile, fullgraph=True, backend="aot_eager")
    nested = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)], layout=torch.jagged)
    layer = nn.Linear(4, 4)
    with recorded().open() as run:
        with pytest.raises(TrackerTypeError, match=r"'bad'.*a nested tensor.*values\(\)"):
            compiled(lambda values: run.bins("bad", values))(nested)
        run.watch(layer, gradients=False, activations=True)
        assert compiled(layer)(nested).is_nested


def test_a_partial_output_ends_no_training_of_compiled_code(recorded):
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, Partial, init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    class Part(nn.Module):
        def forward(self, inputs):
            return DTensor.from_local(inputs, mesh, [Partial()])

    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        mesh, model = init_device_mesh("cpu", (2,)), nn.Sequential(Part())
        with recorded(distributed="off").open() as run:
            run.watch(model, gradients=False, activations=True)
            torch.compile(model, fullgraph=True, backend="aot_eager")(torch.ones(3))
    finally:
        dist.destroy_process_group()


def test_more_series_than_slots_are_refused_at_once(recorded):
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    tracker = recorded(max_histograms=3)
    with tracker.open() as run:
        with pytest.raises(TrackerValueError, match=r"4 series, and 3 of 3 slots .* accumulator.max_histograms=4 or"):
            run.watch(module, activations=True)
        run.watch(module)
        run.bins("one more", torch.ones(2))


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


def test_every_counts_steps_of_the_optimizer_and_forwards(recorded):
    # A loop whose steps are micro-batches: it steps the optimizer on every eighth.
    tracker, model = recorded(sync_every=1), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracker.open() as run:
        run.watch(model, activations=True, every=10)
        for step in range(8 * 30):
            run.set_step(step)
            model(torch.ones(1, 4)).sum().backward()
            if (step + 1) % 8 == 0:
                optimizer.step()
                optimizer.zero_grad()
    assert list(tracker.run.histograms("gradients/0.weight")) == [7, 87, 167]
    assert list(tracker.run.histograms("activations/0")) == list(range(0, 240, 10))


def test_every_optimizer_has_a_count_of_its_own(recorded):
    tracker, one, two = recorded(sync_every=1), nn.Linear(1, 1), nn.Linear(1, 1)
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1) for module in (one, two)]
    with tracker.open() as run:
        run.watch(nn.ModuleDict({"one": one, "two": two}), every=2)
        for step in range(6):
            run.set_step(step)
            (one(torch.ones(1, 1)) + two(torch.ones(1, 1))).sum().backward()
            optimizers[step % 2].step()
    assert list(tracker.run.histograms("gradients/one.weight")) == [0, 4]
    assert list(tracker.run.histograms("gradients/two.weight")) == [1, 5]


class Outer(torch.optim.Optimizer):
    """An optimizer within an optimizer, as ZeroRedundancyOptimizer is one."""

    def __init__(self, parameters):
        super().__init__(parameters, {})
        self.inner = torch.optim.SGD(self.param_groups[0]["params"], lr=0.1)

    def step(self, closure=None):
        if any(parameter.grad.isnan().any() for parameter in self.param_groups[0]["params"]):
            raise RuntimeError("a NaN")
        return self.inner.step(closure)


def test_of_nested_optimizers_the_outermost_counts(recorded):
    tracker, model = recorded(sync_every=1), nn.Linear(1, 1, bias=False)
    outer = Outer(model.parameters())
    with tracker.open() as run:
        run.watch(model)
        for step, gradient in enumerate((1.0, float("nan"), 2.0)):
            run.set_step(step)
            model.weight.grad = torch.full((1, 1), gradient)
            with contextlib.suppress(RuntimeError):
                outer.step()
        run.set_step(3)
        outer.inner.step()
    counts = {step: (found.count, found.nan) for step, found in tracker.run.histograms("gradients/weight").items()}
    assert counts == {0: (1, 0), 1: (0, 1), 2: (1, 0), 3: (1, 0)}


def test_activations_of_an_evaluation_are_kept_apart(recorded):
    for evaluation in (False, True):
        tracker, model = recorded(sync_every=1), network()
        with tracker.open() as run:
            run.watch(model, gradients=False, activations=True, evaluation=evaluation)
            for step, is_training in enumerate((True, False, True)):
                run.set_step(step)
                model.train(is_training)
                model(torch.randn(3, 4))
        assert list(tracker.run.histograms("activations/1")) == [0, 2]
        assert list(tracker.run.histograms("activations/1", mode="eval")) == [1] * evaluation


@pytest.mark.parametrize("compiled", [False, True])
def test_structures_and_complex_outputs(recorded, compiled):
    class Both(nn.Module):
        def forward(self, inputs):
            return {"spectrum": torch.fft.rfft(inputs), "parts": (inputs, inputs + 1), "indices": inputs.argmax()}

    class Spectrum(nn.Module):
        def forward(self, inputs):
            return torch.fft.rfft(inputs)

    tracker, model = recorded(), nn.ModuleDict({"both": Both(), "spectrum": Spectrum()})

    def forward(inputs):
        return model["both"](inputs)["parts"][0] + model["spectrum"](inputs).abs().sum()

    with tracker.open() as run:
        run.watch(model, gradients=False, activations=True)
        (torch.compile(forward, fullgraph=True, backend="aot_eager") if compiled else forward)(torch.ones(4))
    found = {record.name: (record.value.count, record.value.max) for record in tracker.run.records}
    assert found == {
        "activations/both/spectrum": (6, 4.0),
        "activations/both/parts": (4, 1.0),
        "activations/both/parts/1": (4, 2.0),
        "activations/spectrum": (6, 4.0),
    }


def test_the_program_of_an_export_is_that_of_the_bare_model(recorded):
    model, batch = network(), torch.ones(2, 4)
    bare = str(torch.export.export(model, (batch,)).graph)
    with recorded().open() as run:
        run.watch(model, activations=True)
        assert str(torch.export.export(model, (batch,)).graph) == bare
        traced = torch.jit.trace(model, batch)
    assert torch.equal(traced(batch), model(batch))


def test_a_watched_model_is_stored_and_copied_without_its_hooks(recorded, tmp_path):
    tracker, model = recorded(), network()
    with tracker.open() as run:
        run.watch(model, activations=True)
        torch.save(model, tmp_path / "model.pt")
        copies = [copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)]
        for other in copies:
            assert torch.equal(other(torch.ones(1, 4)), model.forward(torch.ones(1, 4)))
        before = {record.name for record in tracker.run.records}
    assert before == set()
    counts = {record.name: record.value.count for record in tracker.run.records}
    assert counts == {"activations/0": 16, "activations/1": 16, "activations/2": 4}  # by model.forward alone
    assert b"d9d_tracker" not in (tmp_path / "model.pt").read_bytes()


def test_watching_survives_another_head(recorded):
    tracker, model = recorded(sync_every=1), network()
    with tracker.open() as run:
        run.watch(model)
        for step in range(2):
            run.set_step(step)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            model(torch.ones(1, 4)).sum().backward()
            optimizer.step()
            model[2] = nn.Linear(8, 2)
    assert list(tracker.run.histograms("gradients/2.weight")) == [0, 1]


def test_a_forward_that_checkpointing_runs_again_counts_as_one(recorded):
    tracker, model = recorded(sync_every=1), network()
    with tracker.open() as run:
        run.watch(model, gradients=False, activations=True, every=2)
        for step in range(4):
            run.set_step(step)
            inputs = torch.ones(1, 4, requires_grad=True)
            torch.utils.checkpoint.checkpoint(model, inputs, use_reentrant=False).sum().backward()
    assert list(tracker.run.histograms("activations/0")) == [0, 2]
