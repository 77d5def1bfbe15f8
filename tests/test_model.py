"""Random sequences of calls against a model of a few lines: nothing lost, nothing doubled."""

import math
from collections import defaultdict

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NAMES = st.sampled_from(["a", "b", "c"])
STAGES = st.sampled_from(["train", "eval"])
NUMBERS = st.integers(-(2**20), 2**20).map(float)  # sums of these are exact in any order

CALLS = st.one_of(
    st.tuples(st.just("set_step"), st.integers(0, 3)),
    st.tuples(st.just("set_context"), STAGES),
    st.tuples(st.just("scalar"), NAMES, NUMBERS, st.none() | STAGES),
    st.tuples(st.just("bins"), NAMES, st.lists(NUMBERS, max_size=5)),
    st.tuples(st.just("flush")),
)


class Model:
    """What a tracker promises: values by series and step, populations by series."""

    def __init__(self):
        self.step, self.stage = 0, None
        self.scalars, self.bins = defaultdict(list), defaultdict(list)

    def apply(self, call, *arguments):
        if call == "set_step":
            self.step += arguments[0]
        elif call == "set_context":
            self.stage = arguments[0]
        elif call == "scalar":
            self.scalars[arguments[0], arguments[2] or self.stage, self.step].append(arguments[1])
        elif call == "bins":
            self.bins[arguments[0], self.stage].extend(arguments[1])


def apply(run, model, call, *arguments):
    model.apply(call, *arguments)
    if call == "set_step":
        run.set_step(model.step)
    elif call == "set_context":
        run.set_context({"stage": arguments[0]})
    elif call == "scalar":
        run.scalar(arguments[0], torch.tensor(arguments[1]), arguments[2] and {"stage": arguments[2]})
    elif call == "bins":
        run.bins(f"{arguments[0]} values", torch.tensor(arguments[1]))
    else:
        run.flush()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(CALLS, max_size=60), sync_every=st.integers(1, 6))
def test_nothing_is_lost_and_nothing_doubled(recorded, calls, sync_every):
    tracker, model = recorded(sync_every=sync_every, max_scalars=16, max_histograms=16), Model()
    with tracker.open() as run:
        for call in calls:
            apply(run, model, *call)
    points = {
        (record.name, record.context.get("stage"), record.step): record.value
        for record in tracker.run.records
        if isinstance(record.value, float)
    }
    assert points == {series: math.fsum(values) / len(values) for series, values in model.scalars.items()}
    for (name, stage), values in model.bins.items():
        context = {} if stage is None else {"stage": stage}
        histograms = tracker.run.histograms(f"{name} values", **context).values()
        assert sum(histogram.count for histogram in histograms) == len(values)
        assert sum(histogram.sum for histogram in histograms) == sum(values)
        assert sum(histogram.zeros for histogram in histograms) == values.count(0.0)
