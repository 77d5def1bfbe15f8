"""Blocks of ``run.context`` and code that is compiled, in parts or not at all."""

import threading

import pytest
import torch
from torch import nn

from d9d_tracker.calls import calls


class Breaks(nn.Module):
    def forward(self, inputs):
        torch._dynamo.graph_break()
        return inputs * 2


@torch.compiler.disable
def not_compiled(run, inputs):
    with run.context(part="head"):
        run.scalar("mean", inputs.mean())
        run.scalars({"a": 1.0}, {"of": "head"})
    return inputs * 2


def around_a_break(run, inputs):
    with run.context(part="head"):
        outputs = Breaks()(inputs)
        run.scalar("mean", inputs.mean())
        run.scalars({"a": 1.0}, {"of": "head"})
    return outputs


def beside_a_break(run, inputs):
    outputs = Breaks()(inputs)
    with run.context(part="head"):
        run.scalar("mean", inputs.mean())
        run.scalars({"a": 1.0}, {"of": "head"})
    return outputs + 1


@pytest.mark.parametrize("log", [around_a_break, beside_a_break, not_compiled])
def test_a_block_around_what_is_not_in_one_graph(recorded, log):
    tracker = recorded()
    step = torch.compile(lambda run, inputs: log(run, inputs * 3), backend="eager")
    with tracker.open() as run:
        run.set_context({"stage": "train"})
        for index in range(3):
            run.set_step(index)
            step(run, torch.ones(2) * index)
        run.scalar("mean", 7.0)
    assert tracker.run.points("mean", stage="train", part="head") == {0: 0.0, 1: 3.0, 2: 6.0}
    assert tracker.run.points("a", stage="train", part="head", of="head") == dict.fromkeys(range(3), 1.0)
    assert tracker.run.points("mean", stage="train") == {2: 7.0}


def test_calls_between_two_graphs_are_compiled_by_nobody(recorded, graphs):
    """Each would be a graph of its own for each name that it is given, up to the limit of recompilations."""

    def step_with(log):
        def step(inputs):
            for index in range(12):
                torch._dynamo.graph_break()
                if inputs.sum() > 100:  # before 2.15, Dynamo leaves a loop with a break as it is
                    return inputs
                log(f"value {index}", inputs.sum())
            return inputs

        return torch.compile(step, backend="eager")

    tracker = recorded()
    with tracker.open() as run:
        step_with(run.scalar)(torch.ones(2))
        run.flush()
    assert {record.name for record in tracker.run.records} == {f"value {index}" for index in range(12)}
    found = graphs()
    if torch.__version__ < "2.15":
        assert found <= 4, "twelve names, and what Dynamo tries of the loop"
    else:
        torch._dynamo.reset()
        step_with(lambda name, value: None)(torch.ones(2))
        assert found <= graphs() - found, "no more than without logging"


def test_a_block_of_the_training_thread_tags_what_compiled_code_logs(recorded, graphs):
    tracker = recorded()
    with tracker.open() as run:
        log = torch.compile(lambda inputs: run.scalar("x", inputs.sum()), backend="eager", fullgraph=True)
        run.set_step(0)
        with run.context(stage="eval"):
            log(torch.ones(2))

            def environment():
                with run.context(stage="environment"):
                    run.scalar("y", 1.0)

            thread = threading.Thread(target=environment)
            thread.start()
            thread.join()
            log(torch.ones(2))
        log(torch.ones(3))
    assert tracker.run.points("x", stage="eval") == {0: 2.0}
    assert tracker.run.points("x") == {0: 3.0}
    assert tracker.run.points("y", stage="environment") == {0: 1.0}
    assert graphs() <= 2


def test_a_hook_on_a_thread_of_autograd_is_tagged_as_the_training_is(recorded, monkeypatch):
    """On a GPU, backwards run on threads of autograd's own."""
    tracker = recorded()
    with tracker.open() as run:
        run.set_step(0)
        with run.context(stage="train"):
            thread = threading.Thread(target=lambda: run.scalar("gradient", torch.ones(())))
            with monkeypatch.context() as patch:
                patch.setattr(calls, "is_in_backward", lambda: True)
                patch.setattr("d9d_tracker.calls.scalar_calls.is_plain", lambda: False)
                thread.start()
                thread.join()
    assert tracker.run.points("gradient", stage="train") == {0: 1.0}
