"""Which run and which context compiled code logs to, wherever it holds the run."""

import pytest
import torch
from torch import nn

GLOBAL = None


def compiled(function):
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def test_every_context_has_its_own_series_and_at_most_one_more_graph(recorded, graphs):
    tracker = recorded(sync_every=2)
    with tracker.open() as run:

        @compiled
        def log(inputs):
            run.scalar("loss", inputs.sum())
            run.bins("inputs", inputs, {"part": "in"})
            return inputs * 2

        stages = ("train", "eval", "train", "train", "eval", "train")
        for step, stage in enumerate(stages):
            run.set_step(step)
            run.set_context({"stage": stage})
            log(torch.full((2,), float(step)))
    for stage in ("train", "eval"):
        steps = [step for step, other in enumerate(stages) if other == stage]
        assert tracker.run.points("loss", stage=stage) == {step: 2.0 * step for step in steps}
        assert sum(h.sum for h in tracker.run.histograms("inputs", stage=stage, part="in").values()) == 2 * sum(steps)
    assert graphs() == 2


def test_a_context_set_inside_compiled_code_holds_from_there_on(recorded):
    tracker = recorded()
    with tracker.open() as run:

        @compiled
        def log(inputs):
            run.scalar("before", inputs.sum())
            run.set_context({"part": "second"})
            run.scalar("after", inputs.sum())
            return inputs * 2

        log(torch.ones(2))
        run.scalar("outside", 1.0)
    assert tracker.run.points("before") == {0: 2.0}
    assert tracker.run.points("after", part="second") == {0: 2.0}
    assert tracker.run.points("outside", part="second") == {0: 1.0}


def through_argument(run):
    function = compiled(log)
    return lambda inputs: function(run, inputs)


def log(run, inputs):
    run.scalar("value", inputs.sum())
    run.bins("values", inputs)
    return inputs * 2


def through_closure(run):
    return compiled(lambda inputs: log(run, inputs))


class Layer(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.run = run

    def forward(self, inputs):
        return log(self.run, inputs)


def through_attribute(run):
    return compiled(Layer(run))


def log_globally(inputs):
    return log(GLOBAL, inputs)


def through_global(run):
    global GLOBAL
    function = compiled(log_globally)

    def call(inputs):
        global GLOBAL
        GLOBAL = run
        return function(inputs)

    return call


HOLDERS = [through_argument, through_closure, through_attribute, through_global]


@pytest.mark.parametrize("hold", HOLDERS)
def test_two_open_trackers_never_write_into_each_other(recorded, hold):
    one, other = recorded(sync_every=2), recorded(sync_every=3)
    with one.open() as first, other.open() as second:
        first.scalar("takes the first slot", 0.0)
        first.bins("takes the first row", torch.zeros(1))
        calls = {first: hold(first), second: hold(second)}
        for step in range(4):
            for factor, run in ((1.0, first), (10.0, second)):
                run.set_step(step)
                calls[run](torch.full((2,), factor * step))
    assert one.run.points("value") == {step: 2.0 * step for step in range(4)}
    assert other.run.points("value") == {step: 20.0 * step for step in range(4)}
    assert sum(h.sum for h in one.run.histograms("values").values()) == 12.0
    assert sum(h.sum for h in other.run.histograms("values").values()) == 120.0


@pytest.mark.parametrize("hold", HOLDERS)
def test_a_closed_run_takes_nothing_and_the_next_one_is_used_without_a_new_graph(recorded, graphs, hold, caplog):
    tracker = recorded()
    with tracker.open("first") as run:
        call = hold(run)
        call(torch.ones(2))
    while_open = graphs()
    for _ in range(2):
        call(torch.ones(2))
    assert caplog.text.count("while no run was open") == 1
    assert graphs() <= while_open + 1  # one that computes and does not log
    while_closed = graphs()
    with tracker.open("second") as run:
        call(torch.full((2,), 3.0))
    first, second = tracker.backend.runs.values()
    assert (first.points("value"), second.points("value")) == ({0: 2.0}, {0: 6.0})
    assert (first.histograms("values")[0].sum, second.histograms("values")[0].sum) == (2.0, 6.0)
    assert graphs() == while_closed
