"""Which run and which context compiled code logs to, wherever it holds the run."""

import pytest
import torch
from torch import nn

GLOBAL = None


def compiled(function):
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def test_every_context_has_its_own_series_and_no_graph_of_its_own(recorded, graphs):
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
    assert graphs() == 1


def test_a_context_block_inside_compiled_code_holds_within_it(recorded, graphs):
    tracker = recorded()
    with tracker.open() as run:

        @compiled
        def log(inputs):
            run.scalar("value", inputs.sum())
            with run.context(part="second"):
                run.scalar("value", inputs.sum())
                run.scalar("value", inputs.sum(), {"part": "third"})
            run.scalar("after", inputs.sum())
            return inputs * 2

        for stage in ("train", "eval"):
            with run.context(stage=stage):
                log(torch.ones(2))
        run.scalar("outside", 1.0)
    for stage in ("train", "eval"):
        assert tracker.run.points("value", stage=stage) == {0: 2.0}
        assert tracker.run.points("value", stage=stage, part="second") == {0: 2.0}
        assert tracker.run.points("value", stage=stage, part="third") == {0: 2.0}
        assert tracker.run.points("after", stage=stage) == {0: 2.0}
    assert tracker.run.points("outside") == {0: 1.0}
    assert graphs() == 1


def test_twenty_contexts_in_any_order_are_one_graph_and_exact(recorded, graphs):
    tracker = recorded(sync_every=3)
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    with tracker.open() as run:

        def forward(inputs):
            run.scalar("largest", inputs.amax(), reduce="max")
            run.scalars({"a": inputs.sum(), "b": inputs.mean()}, weight=inputs.numel())
            run.bins("inputs", inputs)
            run.counts("counts", torch.arange(3))
            return model(inputs).sum()

        call = torch.compile(forward, fullgraph=True, backend="aot_eager")
        for step in range(60):
            run.set_step(step)
            run.set_context({"fold": str(step % 20)})
            call(torch.full((2, 4), float(step))).backward()
    assert graphs() == 1
    for fold in range(20):
        steps = range(fold, 60, 20)
        assert tracker.run.points("largest", fold=str(fold)) == {step: float(step) for step in steps}
        assert tracker.run.points("a", fold=str(fold)) == {step: 8.0 * step for step in steps}
        assert sum(h.sum for h in tracker.run.histograms("inputs", fold=str(fold)).values()) == 8 * sum(steps)
        assert sum(h.count for h in tracker.run.histograms("counts", fold=str(fold)).values()) == 3 * len(steps)


def test_a_context_set_between_a_forward_and_its_backward(recorded, graphs):
    """What a gradient hook logs belongs to the context that holds when the backward runs."""
    tracker = recorded()
    with tracker.open() as run:

        @compiled
        def forward(inputs):
            doubled = inputs * 2
            doubled.register_hook(lambda gradient: run.scalar("gradient", gradient.sum()))
            run.scalar("value", doubled.sum())
            return doubled.sum()

        for step, stage in enumerate(("first", "second", "first")):
            run.set_step(step)
            run.set_context({"stage": stage})
            loss = forward(torch.ones(3, requires_grad=True))
            run.set_context({"stage": "backward"})
            loss.backward()
    assert tracker.run.points("gradient", stage="backward") == {0: 3.0, 1: 3.0, 2: 3.0}
    assert tracker.run.points("value", stage="first") == {0: 6.0, 2: 6.0}
    assert tracker.run.points("value", stage="second") == {1: 6.0}
    assert graphs() == 1


def test_a_series_that_was_logged_differently_in_another_context_is_dropped_there_and_said(recorded, caplog):
    tracker = recorded()
    with tracker.open() as run:
        run.set_context({"stage": "eval"})
        run.scalar("value", 5.0, reduce="max")
        run.set_context({})
        call = compiled(lambda inputs: run.scalar("value", inputs.sum()))
        call(torch.ones(2))
        for _ in range(2):
            run.set_context({"stage": "eval"})
            call(torch.ones(2))
            run.set_context({})
    assert tracker.run.points("value") == {0: 2.0}
    assert tracker.run.points("value", stage="eval") == {0: 5.0}
    assert caplog.text.count("what compiled code logs there is dropped") == 1


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


def test_without_guards_code_logs_under_any_context_to_any_run_of_its_tracker_and_of_another_once_it_was_asked(
    recorded,
):
    class Model(nn.Module):
        def forward(self, inputs):
            self.run.scalar("loss", inputs.sum())
            return inputs * 2

    model = Model()
    log = compiled(model)

    def train(tracker, warm):
        with tracker.open() as model.run:
            for step in range(5):
                model.run.set_step(step)
                model.run.set_context({"stage": "odd" if step % 2 else "even"})
                with torch.compiler.set_stance(skip_guard_eval_unsafe=step >= warm):
                    log(torch.full((2,), float(step)))
        return {**tracker.run.points("loss", stage="odd"), **tracker.run.points("loss", stage="even")}

    everything, tracker = {step: 2.0 * step for step in range(5)}, recorded(sync_every=2)
    assert train(tracker, warm=1) == everything
    assert train(tracker, warm=0) == everything
    assert train(recorded(sync_every=2), warm=1) == everything
    assert train(recorded(sync_every=2), warm=0) == {}  # a guard is what tells code that its run is over
