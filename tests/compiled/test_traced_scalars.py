"""Numbers that compiled code logs one by one are written together, and arrive as in eager code."""

import math
from collections import Counter

import pytest
import torch
from torch._dynamo.symbolic_convert import InliningInstructionTranslator


def last_again(run, values):
    run.scalar("a", values[0], reduce="last")
    run.scalar("b", values[1], reduce="last")
    run.scalar("a", values[2], reduce="last")


def last_around_others(run, values):
    run.scalar("a", values[0], reduce="last")
    run.scalar("b", values[1], reduce="last")
    run.scalars({"a": values[2], "c": values[3]}, weight=None, reduce="last", context={})
    run.scalar("a", 7.5, reduce="last")  # a number goes another way
    run.scalar("b", values[4], reduce="last")


def changed_in_place(run, values):
    value = values[0].clone()
    run.scalar("a", value)
    value.add_(100)
    run.scalar("b", value)


def every_reduction(run, values):
    for reduce in ("mean", "sum", "min", "max", "last"):
        for index, value in enumerate(values):
            run.scalar(f"{reduce}/{index % 3}", value, reduce=reduce)


def weighted_between(run, values):
    run.scalar("a", values[0])
    run.scalar("a", values[1], weight=3)
    run.scalar("b", values[2])
    run.scalar("a", values[3])


def contexts_between(run, values):
    run.scalar("a", values[0], reduce="last")
    with run.context(stage="eval"):
        run.scalar("a", values[1], reduce="last")
        run.scalars({"b": values[2], "c": values[3]})
    run.scalar("a", values[4], reduce="last")


def with_nan(run, values):
    run.scalar("a", values[0])
    run.scalar("b", torch.full((), math.nan))
    run.scalar("a", values[1])


CASES = [
    last_again,
    last_around_others,
    changed_in_place,
    every_reduction,
    weighted_between,
    contexts_between,
    with_nan,
]


@pytest.mark.parametrize("log", CASES, ids=lambda log: log.__name__)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_values_are_those_of_eager_code(recorded, logged, log, backend):
    found = []
    for function in (log, torch.compile(log, backend=backend, fullgraph=True)):
        tracker = recorded()
        with tracker.open() as run:
            for step in range(3):
                run.set_step(step)
                function(run, [torch.tensor(step * 8.0 + index) for index in range(8)])
        found.append(repr(logged(tracker.run)))  # in which NaN equals itself
    assert found[0] == found[1]


def one_by_one(run, values):
    for index, value in enumerate(values):
        run.scalar(f"value/{index}", value)


def by_mapping(run, values):
    run.scalars({f"value/{index}": value for index, value in enumerate(values)})


def targets(recorded, log):
    """What the graph of a function calls, and how often."""
    graphs = []

    def keep(module, inputs):
        graphs.append(Counter(str(node.target) for node in module.graph.nodes if node.op.startswith("call")))
        return module.forward

    with recorded().open() as run:
        torch.compile(log, backend=keep, fullgraph=True)(run, [torch.ones(()) for _ in range(12)])
    (graph,) = graphs
    return graph


def test_calls_one_by_one_are_one_write(recorded):
    one, many = targets(recorded, one_by_one), targets(recorded, by_mapping)
    assert one == many
    assert not any("note_scalars" in target for target in one)


def test_a_call_is_two_frames_for_dynamo(recorded, monkeypatch):
    calls, inline = [], InliningInstructionTranslator.inline_call.__func__

    def count(cls, parent, function, *arguments, **keywords):
        calls.append(function)
        return inline(cls, parent, function, *arguments, **keywords)

    monkeypatch.setattr(InliningInstructionTranslator, "inline_call", classmethod(count))
    with recorded().open() as run:
        for number in (2, 12):
            torch.compile(one_by_one, backend="eager", fullgraph=True)(run, [torch.ones(()) for _ in range(number)])
            calls.append(None)
    first = calls.index(None)
    assert (first, len(calls) - first - 2) == (2 * 2, 2 * 12)
