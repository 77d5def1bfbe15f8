"""A tracker for each trial: what was compiled for one run serves those after it, whose trackers are others."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from d9d_tracker import LinearBinning

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "compiled.md"
TRIALS = 12


class Net(nn.Module):
    def __init__(self, run, reduce="mean"):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.run = run
        self.reduce = reduce

    def forward(self, inputs):
        outputs = self.layer(inputs)
        if self.run is not None:
            self.run.scalar("sum", inputs.sum(), reduce=self.reduce)
            self.run.scalars({"a": inputs.amax(), "b": 2.0}, {"part": "x"})
            self.run.bins("inputs", inputs)
            self.run.counts("counts", torch.arange(3))
        return outputs


class Hooked(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.run = run

    def forward(self, inputs):
        outputs = self.layer(inputs)
        if self.run is not None:
            outputs.register_hook(lambda gradient: self.run.scalar("gradient", gradient.sum(), reduce="sum"))
            outputs.register_hook(lambda gradient: self.run.bins("gradients", gradient))
        return outputs


def train(kind, run, trial):
    model: Any = torch.compile(kind(run), backend="aot_eager", fullgraph=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(3):
        if run is not None:
            run.set_step(step)
        optimizer.zero_grad()
        model(torch.full((2, 4), float(trial + step))).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", [Net, Hooked])
def test_twelve_trials_with_a_tracker_each_need_the_graphs_of_twelve_that_log_nothing(recorded, graphs, kind):
    for trial in range(TRIALS):
        train(kind, None, trial)
    without = graphs()
    torch._dynamo.reset()
    trackers = [recorded(sync_every=2) for _ in range(TRIALS)]
    for trial, tracker in enumerate(trackers):
        with tracker.open(f"trial {trial}") as run:
            train(kind, run, trial)
    assert graphs() - without == without
    assert f"| {TRIALS} trials, each with its own tracker | {without} | {without} |" in GUIDE.read_text().splitlines()
    for trial, tracker in enumerate(trackers):
        run = tracker.run
        if kind is Hooked:
            assert run.points("gradient") == dict.fromkeys(range(3), 8.0)
            assert sum(one.count for one in run.histograms("gradients").values()) == 24
            continue
        values = [float(trial + step) for step in range(3)]
        assert run.points("sum") == {step: 8 * value for step, value in enumerate(values)}
        assert run.points("a", part="x") == dict(enumerate(values))
        assert run.points("b", part="x") == dict.fromkeys(range(3), 2.0)
        assert sum(one.sum for one in run.histograms("inputs").values()) == 8 * sum(values)
        assert sum(one.count for one in run.histograms("counts").values()) == 9


def test_trackers_in_turns_and_two_at_once_keep_to_their_own(recorded):
    model: Any = torch.compile(Net(None), backend="aot_eager", fullgraph=True)
    one, other = recorded(), recorded()

    def log(run, value):
        model.run = run
        model(torch.full((1, 4), value))

    with one.open("one 1") as run:
        log(run, 1.0)
    with other.open("other 1") as run:
        run.scalar("takes the first slot", 0.0)
        log(run, 2.0)
        with one.open("one 2") as second:
            log(second, 3.0)
            log(run, 4.0)
            run.set_context({"stage": "eval"})
            log(run, 5.0)
    with one.open("one 3") as run:
        log(run, 6.0)
    ones = {run.properties.name: run.points("sum") for run in one.backend.runs.values()}
    assert ones == {"one 1": {0: 4.0}, "one 2": {0: 12.0}, "one 3": {0: 24.0}}
    assert other.run.points("sum") == {0: 12.0}
    assert other.run.points("sum", stage="eval") == {0: 20.0}


def test_code_that_holds_the_run_of_an_earlier_trial_logs_nowhere(recorded, caplog):
    earlier, later = recorded(), recorded()
    with earlier.open() as run:
        function = torch.compile(lambda inputs: run.scalar("x", inputs.sum()), backend="aot_eager", fullgraph=True)
        function(torch.ones(2))
    with later.open():
        function(torch.ones(2))
    assert earlier.run.points("x") == {0: 2.0}
    assert later.run.records == []
    assert "while no run was open" in caplog.text


def test_a_series_may_be_another_one_in_the_next_trial(recorded, caplog):
    for reduce, expected in (("mean", 8.0), ("sum", 16.0), ("mean", 8.0)):
        tracker = recorded()
        with tracker.open() as run:
            model = torch.compile(Net(run, reduce), backend="aot_eager", fullgraph=True)
            for _ in range(2):
                model(torch.full((2, 4), 1.0))
        assert tracker.run.points("sum") == {0: expected}
    assert "is dropped" not in caplog.text


@pytest.mark.parametrize(
    "settings",
    [{"bins_every": 2}, {"binning": LinearBinning(low=0, high=9, bins=3)}, {"max_scalars": 7}, {"max_histograms": 3}],
    ids=lambda settings: next(iter(settings)),
)
def test_a_trial_with_other_settings_gets_code_that_fits_them(recorded, logged, settings):
    def log(handle, run, inputs):
        handle.scalar(inputs.mean())
        run.scalar("sum", inputs.sum())
        run.bins("inputs", inputs)

    compiled = torch.compile(log, backend="aot_eager", fullgraph=True)
    for chosen in ({}, settings, {}):
        found = []
        for function in (compiled, log):
            tracker = recorded(**chosen)
            with tracker.open() as run:
                for step in range(3):
                    run.set_step(step)
                    function(run.scalar_series("mean"), run, torch.full((2, 4), float(step)))
            found.append(logged(tracker.run))
            edges = [record.value.edges.tolist() for record in tracker.run.records if record.name == "inputs"]
            found[-1]["edges"] = edges
        assert found[0] == found[1]


def test_what_earlier_trials_logged_takes_no_slot_until_their_code_runs(recorded):
    def log(run, inputs):
        run.scalar("only earlier", inputs.sum())

    for _ in range(2):
        with recorded().open() as run:
            torch.compile(log, backend="aot_eager", fullgraph=True)(run, torch.ones(2))
            Net(run)
    tracker = recorded()
    with tracker.open() as run:
        torch.compile(Net(run), backend="aot_eager", fullgraph=True)(torch.ones(1, 4))
        assert [series.name for series in run.buffers.scalar_series.series] == ["sum", "a", "b"]


def test_contexts_of_a_later_trial_reach_code_of_an_earlier_one(recorded, graphs):
    for _ in range(2):
        tracker = recorded()
        with tracker.open() as run:
            model = torch.compile(Net(run), backend="aot_eager", fullgraph=True)
            run.set_context({"stage": "eval"})
            model(torch.full((1, 4), 1.0))
            run.set_context({"stage": "train"})
            model(torch.full((1, 4), 2.0))
        assert tracker.run.points("sum", stage="eval") == {0: 4.0}
        assert tracker.run.points("sum", stage="train") == {0: 8.0}
    assert graphs() == 1
