"""Several watches in a run: of models of one shape, and of one model twice."""

import pytest
import torch
from torch import nn

from d9d_tracker import TrackerTypeError, TrackerValueError


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))


def step_of(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer


def test_models_of_one_shape_have_prefixes(recorded):
    tracker, actor, critic = recorded(), network(), network()
    with tracker.open() as run:
        watches = [
            run.watch(model, prefix=prefix, parameters=True, activations=True)
            for model, prefix in ((actor, "actor"), (critic, "critic"))
        ]
        assert watches[0].series == {name.replace("critic", "actor", 1) for name in watches[1].series}
        assert "actor/gradients/0.weight" in watches[0].series
        assert "actor/activations/0" in watches[0].series
        step_of(actor)
    found = {record.name for record in tracker.run.records}
    assert len(found) == 10
    assert all(name.startswith("actor/") for name in found)


def test_models_of_one_shape_without_prefixes_are_refused(recorded):
    with recorded().open() as run:
        kept = network()
        watch = run.watch(kept)
        with pytest.raises(TrackerValueError, match=r"'gradients/0.bias' is watched already.*prefix=.*remove\(\)"):
            run.watch(network())
        assert run.watches == [watch]
        with pytest.raises(TrackerTypeError, match="watch: prefix=1 is not a str"):
            run.watch(kept, prefix=1)


@pytest.mark.parametrize("wrap", [lambda model: model, torch.compile])
def test_a_model_that_is_watched_again_counts_once(recorded, wrap):
    tracker, model = recorded(), network()
    with tracker.open() as run:
        first = run.watch(model, activations=True)
        second = run.watch(wrap(model), parameters=True, activations=True)
        assert run.watches == [second]
        assert first.series == set()
        step_of(model)
    counts = {record.name: record.value.count for record in tracker.run.records}
    assert len(counts) == 10
    assert (counts["gradients/0.weight"], counts["activations/0"]) == (6, 3)


def test_a_watch_ends_for_that_of_a_model_in_the_place_of_one_that_is_gone(recorded):
    tracker = recorded()
    with tracker.open() as run:
        for _ in range(2):  # a cell that makes the model, and is run again
            model = None
            model = network()
            run.watch(model)
            step_of(model)
    assert {record.value.count for record in tracker.run.records} == {12, 6, 2}


def test_a_watch_that_is_interrupted_leaves_nothing(recorded, monkeypatch):
    from d9d_tracker.watch.outputs import Outputs

    tracker, model = recorded(), network()
    put = Outputs.register

    def interrupted(self):
        put(self)
        raise KeyboardInterrupt

    with tracker.open() as run:
        monkeypatch.setattr(Outputs, "register", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.watch(model, activations=True)
        monkeypatch.setattr(Outputs, "register", put)
        assert run.watches == []
        run.watch(model, activations=True)
        step_of(model)
    counts = {record.name: record.value.count for record in tracker.run.records}
    assert (counts["gradients/0.weight"], counts["activations/0"]) == (6, 3)


def test_names_that_another_watch_has_are_not_counted_twice(recorded, caplog):
    tracker, first, second = recorded(sync_every=1), network(), network()
    with tracker.open() as run:
        run.watch(first, activations=True)
        run.watch(nn.ModuleDict({"0": nn.Linear(2, 3)}), gradients=False, parameters=True)
        other = nn.ModuleDict({"other": second})
        run.watch(other, activations=True)
        other["0"] = nn.Linear(2, 3)
        other.forward = lambda values: other["other"](other["0"](values)[:, :2])
        optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
        for step in range(2):
            run.set_step(step)
            other(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    assert {record.name for record in tracker.run.records} == {
        *("gradients/other.0.weight", "gradients/other.0.bias", "gradients/other.1.weight", "gradients/other.1.bias"),
        *("activations/other.0", "activations/other.1"),
    }
    assert caplog.text.count("another watch logs to a series of this name") == 2


def test_a_watch_that_was_removed_promises_nothing(recorded, caplog):
    tracker, model = recorded(sync_every=2), network()
    with tracker.open() as run:
        run.watch(model, activations=True).remove()
        for step in range(6):
            run.set_step(step)
            step_of(model)
    assert "nothing was counted" not in caplog.text
