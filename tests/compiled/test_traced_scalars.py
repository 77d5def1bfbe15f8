"""Numbers that compiled code logs one by one are written together, and arrive as in eager code."""

import math
import re
from collections import Counter

import pytest
import torch
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
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
    assert first <= 2 * 2 + 1  # one for the loop, in torch 2.11
    assert len(calls) - 2 == 2 * first + 2 * 10


def with_weights(run, values):
    for index, value in enumerate(values):
        run.scalar(f"value/{index}", value, weight=2.0)


def with_histograms(run, values):
    for index, value in enumerate(values):
        run.bins(f"value/{index}", value)


def with_handles(run, values):
    for handle, value in zip(run.handles, values, strict=True):
        handle.scalar(value)


def with_histogram_handles(run, values):
    for handle, value in zip(run.bins_handles, values, strict=True):
        handle.bins(value)


def nothing(run, values):
    return [run.is_open and value + index for index, value in enumerate(values)]


def guards(recorded, log, number=2):
    """What compiled code checks at each call: of what kind, and how often; and the whole of it as text."""
    torch._dynamo.reset()
    with recorded().open() as run:
        run.handles = [run.scalar_series(f"handle/{index}") for index in range(number)]
        run.bins_handles = [run.bins_series(f"bins/{index}") for index in range(number)]
        torch.compile(log, backend="eager", fullgraph=True)(run, [torch.ones(()) for _ in range(number)])
        (entry,) = _debug_get_cache_entry_list(log.__code__)
    text = str(entry.guard_manager)
    return Counter(re.findall(r"\+- ([A-Z_]{5,}): ", text)), text


# How many guards a call is, at most, and each further value, but for those on the value.
WAYS = {
    one_by_one: (10, 0),
    by_mapping: (10, 0),
    with_weights: (18, 0),
    with_histograms: (18, 0),
    with_handles: (12, 3),
    with_histogram_handles: (26, 9),
}


@pytest.mark.parametrize("log", WAYS)
def test_no_guard_is_on_what_never_changes(recorded, log):
    _, text = guards(recorded, log)
    assert "d9d_tracker_dot_" not in text  # our modules
    assert "__mro__" not in text  # our classes, defaults of their methods among it
    assert not re.search(r"\.(buffers|target|traced)\b", text)  # what a run or a handle holds for life


@pytest.mark.parametrize("log", WAYS)
def test_what_a_call_guards_on_is_counted(recorded, log):
    values = ("TENSOR_MATCH", "DIMENSION_DYNAMIC_MARKING_GUARD", "NO_HASATTR")  # the last in torch 2.11
    (without, _), (two, _), (four, _) = (guards(recorded, *each) for each in ((nothing, 2), (log, 2), (log, 4)))
    first, further = two - without, four - two
    assert first["LAMBDA_GUARD"] == further["LAMBDA_GUARD"] == 0  # in Python: each is as long as ten of the others
    for value in values:
        del first[value], further[value]
    most, each = WAYS[log]
    assert first.total() <= most
    assert further.total() <= 2 * each
