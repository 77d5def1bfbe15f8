"""Numbers that a graph notes one by one: what is written of them, and by how much of a graph."""

import operator
from collections import Counter

import pytest
import torch

# Noted side by side, in one stretch, are those with nothing but notes, getitem and detach between them.


def elements(run, x):
    for index, value in enumerate(x.unbind()):
        run.scalar(f"element/{index}", value)


def elements_by_index(run, x):
    for index in range(40):
        run.scalar(f"index/{index}", x[index])


def elements_out_of_order(run, x):
    for index in (3, 2, -2, -1, 7, 8, 9, 0):
        run.scalar(f"order/{index}", x[index], reduce="last")
    for index in range(10):
        run.scalar(f"other/{index}", x[2 * index])


def elements_of_several(run, x):
    squares, whole = x * x, x.long()
    for index in range(6):
        run.scalar(f"square/{index}", squares[index])
        run.scalar(f"whole/{index}", whole[index], reduce="max")
    for index in range(3):
        run.scalar(f"mixed/{index}", (x, squares, whole)[index][index])


def a_vector_that_changes(run, x):
    vector = x.clone()
    for index in range(10):
        run.scalar(f"changed/{index}", vector[index])
    vector.add_(1)
    for index in range(10, 20):
        run.scalar(f"changed/{index}", vector[index])
    vector.zero_()


def the_other_way_round(run, x):
    matrix = x.reshape(2, 20) * 2
    for index in range(20):
        run.scalar(f"way/{index}", matrix[0, index])
    for index in reversed(range(20)):
        run.scalar(f"way/{index}", matrix[1, index])


def numbers_apart(run, x):
    for index, value in enumerate([x[index] * 2 for index in range(33)]):
        run.scalar(f"apart/{index}", value, reduce="min")


def many_and_few(run, x):
    for index in range(36):
        run.scalar(f"few/{index}", x[index] * 2)
        if index == 0:
            for other, value in enumerate(x.unbind()[:30]):
                run.scalar(f"few/{36 + other}", value)


def numbers_that_change(run, x):
    values = [x[index] * 2 for index in range(20)]
    for index, value in enumerate(values):
        run.scalar(f"number/{index}", value)
        if index % 5 == 4:
            torch._foreach_add_(values, 1.0)  # which no version of a tensor counts


def numbers_of_each_dtype(run, x):
    dtypes = (torch.float16, torch.int64, torch.bfloat16, torch.bool, torch.float64, torch.uint8, torch.float32)
    values = [(x[index] * 4).to(dtype) for index, dtype in enumerate(dtypes)]
    values.append(x[:1].reshape(1, 1) * 3)
    for index, value in enumerate(values):
        run.scalar(f"dtype/{index}", value)


def no_dtype_for_both(run, x):
    whole, other = x[0].long() + 2**40, x[1] / 2  # float32 would lose the first
    run.scalar("whole", whole)
    run.scalar("other", other)
    float8, float32 = (x[0] / 8).to(torch.float8_e5m2), x[1] * 3
    run.scalar("float8", float8)
    run.scalar("float32", float32)


def rows_of_a_matrix(run, x):
    for index, row in enumerate(x.reshape(10, 4).unbind(1)):
        run.scalar(f"row/{index}", row[index])
    for index, row in enumerate(x.reshape(40, 1)):
        run.scalar(f"column/{index}", row)


def without_gradients(run, x):
    with torch.no_grad():
        for index in range(5):
            run.scalar(f"without/{index}", x[index])
        double = x.double()
        for index in range(5):
            run.scalar(f"double/{index}", double[index])
    double *= 2
    run.scalar("double/last", double[0])


CASES = [
    elements,
    elements_by_index,
    elements_out_of_order,
    elements_of_several,
    a_vector_that_changes,
    the_other_way_round,
    numbers_apart,
    many_and_few,
    numbers_that_change,
    numbers_of_each_dtype,
    no_dtype_for_both,
    rows_of_a_matrix,
    without_gradients,
]


def all_of_them(run, x):
    for log in CASES:
        log(run, x)


def logged_by(recorded, logged, function):
    tracker = recorded()
    with tracker.open() as run:
        for step in range(2):
            run.set_step(step)
            x = torch.arange(40.0, requires_grad=True) + 100 * step + 1
            function(run, x)
            x.sum().backward()
            assert not run.buffers.scalars.current.requires_grad
    return logged(tracker.run)


@pytest.mark.parametrize("log", CASES, ids=lambda log: log.__name__)
def test_the_values_are_those_of_eager_code(recorded, logged, log):
    expected = logged_by(recorded, logged, log)
    assert expected
    assert logged_by(recorded, logged, torch.compile(log, backend="aot_eager", fullgraph=True)) == expected


def test_the_values_are_those_of_eager_code_with_inductor(recorded, logged):
    expected = logged_by(recorded, logged, all_of_them)
    assert logged_by(recorded, logged, torch.compile(all_of_them, fullgraph=True)) == expected


def targets(recorded, log):
    """What the graph of a function calls, and how often, if no test has logged its names before."""
    graphs = []

    def keep(module, inputs):
        graphs.append(Counter(node.target for node in module.graph.nodes if node.op.startswith("call")))
        return module.forward

    with recorded().open() as run:
        torch.compile(log, backend=keep, fullgraph=True)(run, torch.arange(100.0))
    (graph,) = graphs
    return graph


def a_hundred_elements(run, x):
    for index, value in enumerate(x.unbind()):
        run.scalar(f"elements of one/{index}", value)


def a_hundred_numbers(run, x):
    for index, value in enumerate([value * 2 for value in x.unbind()]):
        run.scalar(f"numbers of many/{index}", value)


def a_hundred_numbers_in_between(run, x):
    for index, value in enumerate(x.unbind()):
        run.scalar(f"numbers in between/{index}", value * 2)


def test_elements_of_a_vector_are_written_as_one(recorded):
    graph = targets(recorded, a_hundred_elements)
    assert graph[torch.cat] == 0
    assert graph["to"] == 1
    assert graph.total() - graph[operator.getitem] <= 14


def test_numbers_apart_cost_a_node_each(recorded):
    graph = targets(recorded, a_hundred_numbers)
    assert graph["to"] == graph[torch.cat] == 1
    assert graph.total() - graph[operator.getitem] - graph[operator.mul] <= 100 + 50


def test_numbers_with_other_work_in_between_cost_a_few_nodes_each(recorded):
    graph = targets(recorded, a_hundred_numbers_in_between)
    assert graph["to"] == 100  # each is copied where it is noted: what comes after may change it
    assert graph["reshape"] == 0  # none is a buffer of its own at each step
    assert graph.total() - graph[operator.getitem] - graph[operator.mul] <= 300 + 50
