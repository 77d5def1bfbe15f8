"""Counts that are counts already: `run.counts`."""

import numpy as np
import pytest
import torch

from d9d_tracker import IntegerBinning, TrackerTypeError, TrackerValueError

BINNING = IntegerBinning(bins=4)
LOADS = torch.tensor([4, 0, 3, 1])
POPULATION = torch.repeat_interleave(torch.arange(4), LOADS)


def same(one, other):
    return (
        np.array_equal(one.edges, other.edges)
        and np.array_equal(one.counts, other.counts)
        and one.summary() == (other.summary())
    )


@pytest.mark.parametrize("is_compiled", [False, True])
def test_they_are_the_histogram_of_what_was_counted(recorded, is_compiled):
    records = recorded(sync_every=4)
    with records.open() as run:

        def step(loads, population):
            run.counts("load", loads, every=2)
            run.bins("tokens", population, binning=BINNING, every=2)
            return loads + 1

        function = torch.compile(step, fullgraph=True, backend="aot_eager") if is_compiled else step
        for index in range(8):
            run.set_step(index)
            function(LOADS * (index + 1), POPULATION.repeat(index + 1))
    by_name = {}
    for record in records.run.records:
        by_name.setdefault(record.name, []).append(record)
    assert [record.step for record in by_name["load"]] == [2, 6]
    for ours, theirs in zip(by_name["load"], by_name["tokens"], strict=True):
        assert same(ours.value, theirs.value)
        assert ours.value.count == 8 * (1 + 3 if ours.step == 2 else 5 + 7)


def test_no_counts_are_an_empty_histogram(recorded):
    records = recorded()
    with records.open() as run:
        run.counts("load", torch.zeros(3, dtype=torch.int32))
    assert records.run.records[0].value.count == 0


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ([1, 2], TrackerTypeError, "load"),
        (torch.ones(3), TrackerTypeError, "integers, not torch.float32"),
        (torch.ones(2, 3, dtype=torch.int64), TrackerValueError, "a vector, not 2-d"),
        (torch.ones(0, dtype=torch.int64), TrackerValueError, "0 counts"),
        (torch.ones(2047, dtype=torch.int64), TrackerValueError, "2047 counts"),
    ],
)
def test_what_are_no_counts_is_refused(recorded, values, error, words):
    with recorded().open() as run, pytest.raises(error, match=words):
        run.counts("load", values)


def test_a_series_has_one_length(recorded):
    with recorded().open() as run:
        run.counts("load", LOADS)
        with pytest.raises(TrackerValueError, match="load"):
            run.counts("load", LOADS[:3])


@pytest.mark.parametrize("dynamic", [None, True])
def test_counts_of_a_length_that_is_a_symbol_are_counted(recorded, dynamic):
    tracker = recorded()
    batches = [torch.rand(rows, 6) for rows in (3, 4, 5)]
    with tracker.open() as run:
        step = torch.compile(
            lambda x: run.counts("above", (x > 0.5).sum(0)), fullgraph=True, backend="aot_eager", dynamic=dynamic
        )
        for batch in batches:
            step(batch)
    (histogram,) = tracker.run.histograms("above").values()
    assert histogram.counts.tolist()[:6] == (torch.cat(batches) > 0.5).sum(0).tolist()


def test_counts_of_a_length_that_hangs_on_the_data_are_refused_in_compiled_code(recorded):
    with recorded().open() as run, torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        step = torch.compile(lambda x: run.counts("tokens", torch.bincount(x)), fullgraph=True, backend="aot_eager")
        with pytest.raises(TrackerValueError, match=r"'tokens'.*hangs on the data.*fixed length"):
            step(torch.arange(3))
