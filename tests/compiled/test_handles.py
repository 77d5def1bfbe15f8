"""Handles: blocks that share compiled code, each logging under its own name, at no graph more than without."""

import copy

import pytest
import torch
from torch import nn

from d9d_tracker import LinearBinning, TrackerTypeError, TrackerValueError

BLOCKS = 14


class Block(nn.Module):
    def __init__(self, index, run=None):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.scale = None
        if run is not None:
            self.scale = run.scalar_series(f"layers.{index}/scale", reduce="max")
            self.mean = run.scalar_series(f"layers.{index}/mean", {"part": "block"})
            self.out = run.bins_series(f"layers.{index}/out", every=2, binning=LinearBinning(low=-9, high=9, bins=6))

    def forward(self, inputs):
        outputs = inputs + torch.relu(self.layer(inputs))
        if self.scale is not None:
            self.scale.scalar(outputs.abs().amax())
            self.mean.scalar(outputs.mean(), weight=outputs.numel())
            self.out.bins(outputs)
        return outputs


def train(blocks, is_compiled, steps, run=None):
    """Train blocks one after another, evaluate, and train again; return the outputs of each block."""
    torch.manual_seed(0)
    seen = []
    for block in blocks:
        block.register_forward_hook(lambda module, args, output: seen.append(output.detach().clone()))
    if is_compiled:
        for block in blocks:
            block.forward = torch.compile(block.forward, fullgraph=True, backend="aot_eager")
    for step in range(steps):
        if run is not None:
            run.set_step(step)
            run.set_context({"stage": "eval" if step == 2 else "train"})
        values = torch.randn(2, 8, requires_grad=True)
        with torch.set_grad_enabled(step != 2):
            for block in blocks:
                values = block(values)
        if step != 2:
            values.sum().backward()
    return seen


@pytest.mark.parametrize("is_compiled", [False, True])
def test_each_block_logs_under_its_own_name(recorded, graphs, is_compiled):
    train([Block(index) for index in range(BLOCKS)], is_compiled, 4)
    untracked = graphs()
    torch._dynamo.reset()
    tracker = recorded(sync_every=2)
    with tracker.open() as run:
        outputs = train([Block(index, run) for index in range(BLOCKS)], is_compiled, 4, run)
    assert graphs() - untracked == untracked
    assert bool(untracked) == is_compiled
    for index in range(BLOCKS):
        own = outputs[index::BLOCKS]
        for stage, steps in (("train", (0, 1, 3)), ("eval", (2,))):
            scale = {step: own[step].abs().amax().item() for step in steps}
            mean = {step: pytest.approx(own[step].double().mean().item(), abs=1e-5) for step in steps}
            assert tracker.run.points(f"layers.{index}/scale", stage=stage) == scale
            assert tracker.run.points(f"layers.{index}/mean", stage=stage, part="block") == mean
            histograms = tracker.run.histograms(f"layers.{index}/out", stage=stage).values()
            assert sum(h.sum for h in histograms) == pytest.approx(
                sum(own[step].double().sum().item() for step in steps if step % 2 == 0), abs=1e-5
            )


def test_a_handle_and_a_name_are_one_series(recorded):
    tracker = recorded()
    with tracker.open() as run:
        handle = run.scalar_series("loss")
        assert handle.name == "loss"

        @torch.compile(fullgraph=True, backend="aot_eager")
        def log(inputs):
            handle.scalar(inputs.sum())
            run.scalar("loss", inputs.sum() * 2)
            return inputs * 2

        log(torch.ones(3))
        handle.scalar(6)
        run.scalar_series("loss").scalar(torch.tensor(7.0), weight=3)
        run.scalar("loss", 0.0, weight=0)
    assert tracker.run.points("loss") == {0: (3 + 6 + 6 + 21) / 6}


@pytest.mark.parametrize("handle_first", [True, False])
def test_compiled_code_may_name_the_series_of_a_handle(recorded, handle_first):
    tracker = recorded()

    for life in range(2):
        with tracker.open(f"life {life}") as run:

            @torch.compile(fullgraph=True, backend="aot_eager")
            def log(values, run=run):
                run.scalar("loss", values.sum(), reduce="sum")
                run.bins("out", values)
                return values * 2

            if not handle_first:
                log(torch.ones(3))
            loss, out = run.scalar_series("loss", reduce="sum"), run.bins_series("out")
            log(torch.ones(3))
            loss.scalar(1.0)
            out.bins(torch.ones(1))
        calls = 1 if handle_first else 2
        assert tracker.run.points("loss") == {0: 3.0 * calls + 1}
        assert tracker.run.histograms("out")[0].count == 3 * calls + 1


def test_a_handle_outlives_its_run(recorded, graphs, caplog):
    tracker = recorded()
    with tracker.open("first") as run:
        handle, other = run.scalar_series("loss"), run.scalar_series("other")
        call = torch.compile(lambda h, inputs: h.scalar(inputs.sum()), fullgraph=True, backend="aot_eager")
        call(handle, torch.ones(2))
    for handle_ in (handle, other, handle):
        call(handle_, torch.ones(2))
        handle_.scalar(1.0)
    while_closed = graphs()
    assert while_closed <= 2  # one that computes the sum and does not log it
    assert caplog.text.count("while no run was open") == 1
    with tracker.open("second") as run:
        run.scalar("takes the first slot", 1.0)
        call(other, torch.full((2,), 4.0))
        handle.scalar(5.0)
    first, second = tracker.backend.runs.values()
    assert first.points("loss") == {0: 2.0}
    assert (second.points("other"), second.points("loss")) == ({0: 8.0}, {0: 5.0})
    assert graphs() == while_closed


def test_code_for_handles_of_one_run_takes_those_of_others_apart(recorded, caplog):
    def log(handles, values):
        for handle, value in zip(handles, values, strict=True):
            handle(value)

    compiled = torch.compile(log, backend="aot_eager", fullgraph=True)
    values = [torch.tensor(float(number)) for number in (1, 2, 3)]
    one, other = recorded(), recorded()
    with other.open() as second:
        second.scalar("takes the first slot", 0.0)
        with one.open() as first:
            ones, others = (
                [*(run.scalar_series(name, reduce="sum").scalar for name in "ab"), run.bins_series("c").bins]
                for run in (first, second)
            )
            for mixed in (ones, [ones[0], others[1], ones[2]], others, [others[0], others[1], ones[2]]):
                compiled(mixed, values)
        assert "while no run was open" not in caplog.text
        compiled([others[0], ones[1], others[2]], values)
        assert "while no run was open" in caplog.text

    def found(tracker):
        counts = [record.value.count for record in tracker.run.records if record.name == "c"]
        return tracker.run.points("a"), tracker.run.points("b"), counts

    assert found(one) == ({0: 2.0}, {0: 2.0}, [3])
    assert found(other) == ({0: 3.0}, {0: 6.0}, [2])


def test_a_copy_of_a_module_logs_to_the_same_series(recorded):
    tracker = recorded()
    with tracker.open() as run:
        block = Block(0, run)
        assert copy.deepcopy(block).scale is block.scale
        assert copy.deepcopy(block).out is block.out


REFUSED = [
    (lambda run: run.scalar_series(""), TrackerValueError, "empty"),
    (lambda run: run.scalar_series(3), TrackerTypeError, "int"),
    (lambda run: run.scalar_series("a", {"fold": [1]}), TrackerTypeError, "'fold'"),
    (lambda run: run.scalar_series("a", reduce="median"), TrackerValueError, "median"),
    (lambda run: run.scalar_series("a", reduce="max").scalar(1.0, weight=2), TrackerValueError, "weight"),
    (lambda run: run.scalar_series("a").scalar(torch.ones(2)), TrackerValueError, "'a'.*one element"),
    (lambda run: run.scalar_series("a").scalar("text"), TrackerTypeError, "'a'.*str"),
    (lambda run: run.bins_series("b", every=0), TrackerValueError, "every=0"),
    (lambda run: run.bins_series("b", scope="spread"), TrackerValueError, "spread"),
    (lambda run: run.bins_series("b").bins([1.0]), TrackerTypeError, "'b'.*list"),
    (lambda run: (run.scalar_series("c"), run.bins_series("c")), TrackerValueError, "'c'.*with scalar before"),
    (lambda run: (run.scalar("d", 1, reduce="sum"), run.scalar_series("d")), TrackerValueError, "'d'.*'sum'.*'mean'"),
]


@pytest.mark.parametrize(("call", "error", "words"), REFUSED)
def test_what_makes_no_sense_is_refused(recorded, call, error, words):
    with recorded().open() as run, pytest.raises(error, match=words):
        call(run)


def test_it_is_made_outside_of_compiled_code(recorded):
    with recorded().open() as run:
        made_inside = torch.compile(lambda x: run.scalar_series("a").scalar(x.sum()), fullgraph=True, backend="eager")
        with pytest.raises(TrackerValueError, match="scalar_series was called inside compiled code"):
            made_inside(torch.ones(2))


def test_the_scope_of_a_handle(recorded):
    tracker = recorded()
    with tracker.open() as run:
        run.scalar_series("a", scope="rank").scalar(1.0)
        run.scalar_series("b", scope="spread").scalar(2.0)
        run.bins_series("c", scope="rank").bins(torch.ones(3))
    assert tracker.run.points("a", rank="0") == {0: 1.0}
    assert tracker.run.points("b/max") == {0: 2.0}
    assert tracker.run.histograms("c", rank="0")[0].count == 3


class Watched(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.activation = nn.ReLU()

    def forward(self, inputs):
        return inputs + self.activation(self.layer(inputs))


@pytest.mark.parametrize("watch_first", [True, False])
def test_watched_activations_cost_no_graph_of_their_own(recorded, graphs, watch_first):
    model = nn.Sequential(*[Watched() for _ in range(BLOCKS)])
    tracker = recorded(sync_every=3)
    with tracker.open() as run:
        if watch_first:
            run.watch(model, gradients=False, activations=True)
        for block in model:
            block.compile(fullgraph=True, backend="aot_eager")
        for step in range(3):
            run.set_step(step)
            if step == 1 and not watch_first:
                assert graphs() == 2  # the first block's input needs no gradient
                run.watch(model, gradients=False, activations=True)
            model(torch.randn(2, 8)).sum().backward()
    assert graphs() == (2 if watch_first else 4)
    for index in range(BLOCKS):
        for leaf in ("layer", "activation"):
            found = tracker.run.histograms(f"activations/{index}.{leaf}")
            assert sum(h.count for h in found.values()) == 16 * (3 if watch_first else 2)


def test_a_line_whose_names_cost_four_graphs_is_named_once(recorded, caplog):
    class Named(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, run, inputs):
            run.scalar("shared by all", inputs.sum())
            run.scalar(self.name, inputs.sum())  # the line
            return inputs * 2

    tracker = recorded()
    blocks = [Named(f"layers.{index}") for index in range(7)]
    with tracker.open() as run:
        for block in blocks:
            block.compile(fullgraph=True, backend="eager")
            block(run, torch.ones(2))
    said = [r.getMessage() for r in caplog.records if r.name == "d9d_tracker" and "scalar_series" in r.getMessage()]
    assert len(said) == 1
    assert __file__ in said[0]
    assert "4 times" in said[0]
    assert "'layers.0', 'layers.1', 'layers.2', 'layers.3'" in said[0]
    assert dict.fromkeys(("layers.0", "layers.6"), 2.0) == {
        name: tracker.run.points(name)[0] for name in ("layers.0", "layers.6")
    }


def test_many_names_in_one_graph_are_no_fault(recorded, caplog):
    with recorded().open() as run:

        def log(inputs):
            for index in range(9):
                run.scalar(f"value/{index}", inputs.sum())
            return inputs * 2

        torch.compile(log, fullgraph=True, backend="eager")(torch.ones(2))
    assert "scalar_series" not in caplog.text


def test_models_that_log_under_the_same_names_are_no_matter_of_names(recorded, caplog):
    tracker = recorded()

    def make(scale):
        def forward(inputs):
            run.scalars({"first": inputs.sum(), "second": inputs.sum() * scale})
            return inputs

        return forward

    with tracker.open() as run:
        for scale in range(7):
            torch._dynamo.reset_code(make(scale).__code__)
            torch.compile(make(scale), fullgraph=True, backend="eager")(torch.ones(2))
    assert "scalar_series" not in caplog.text
