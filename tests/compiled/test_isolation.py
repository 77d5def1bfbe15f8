"""What a trace of a logging function changes of the process it changes back; the process may be set up otherwise."""

import numpy as np
import pytest
import torch
import torch._dynamo.config as dynamo_config


def shapes_of_an_unrelated_function() -> list[list]:
    seen = []

    def backend(graph, examples):
        seen.append([tuple(one.shape) if isinstance(one, torch.Tensor) else one for one in examples])
        return graph.forward

    torch.compile(lambda x: x * 2, backend=backend)(torch.ones(5, 7))
    return seen


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("value", [lambda: torch.ones(1, 1).to_sparse_csr(), lambda: "text"])
def test_a_refused_trace_leaves_the_rest_of_the_process_as_it_was(recorded, value, reset):
    before = shapes_of_an_unrelated_function()
    if reset:
        torch._dynamo.reset()
    with recorded().open() as run:
        log = torch.compile(lambda value: run.scalar("n", value), fullgraph=True, backend="eager")
        with pytest.raises(Exception):  # noqa: B017, PT011 - whatever Dynamo makes of it
            log(value())
    assert dynamo_config.assume_static_by_default
    torch._dynamo.reset()
    assert shapes_of_an_unrelated_function() == before == [[(5, 7)]]


def test_another_default_device_changes_nothing(recorded):
    tracker = recorded(device="cpu")
    torch.set_default_device("meta")
    try:
        with tracker.open() as run:
            values = torch.ones(2, dtype=torch.float64, device="cpu")

            def log(x):
                run.scalars({"a": x[0], "b": x[1]})
                run.scalar("c", x[1], reduce="last", weight=None)
                run.bins("h", x)

            run.scalar("n", np.array(1.0))
            log(values)
            run.set_step(1)
            torch.compile(log, fullgraph=True, backend="aot_eager")(values)
            run.flush()
            tracker.tracker.state_dict()
    finally:
        torch.set_default_device(None)
    for name in "abc":
        assert tracker.run.points(name) == {0: 1.0, 1: 1.0}
    assert tracker.run.points("n") == {0: 1.0}
    assert sum(histogram.count for histogram in tracker.run.histograms("h").values()) == 4
