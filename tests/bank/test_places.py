"""What the table and the handles say is the slot of each series in the context that holds, in every order."""

import contextlib
import random
from dataclasses import replace

import pytest
import torch

from d9d_tracker import ExponentialBinning, IntegerBinning, TrackerValueError
from d9d_tracker.bank.places import Places
from d9d_tracker.series.registry import Registry
from d9d_tracker.series.series import HistogramSeries, ScalarSeries

CONTEXTS = [(), (("stage", "eval"),), (("stage", "train"),)]
SERIES = [ScalarSeries(name, items, "mean") for name in ("loss", "rate") for items in CONTEXTS[:2]]
SERIES += [HistogramSeries("bins", items, ExponentialBinning()) for items in CONTEXTS[:2]]


class Job:
    """Places as a run has them, and what they should say."""

    def __init__(self):
        self.scalars = Registry[ScalarSeries](20, "max_scalars", "scalar")
        self.histograms = Registry[HistogramSeries](20, "max_histograms", "bins")
        self.places = Places(self.scalars, self.histograms, torch.device("cpu"))
        self.known, self.entries = {}, {}
        self.context = ()

    def slot(self, series, context):
        tags = tuple(sorted((dict(context) | dict(series.context)).items()))
        registry = self.scalars if isinstance(series, ScalarSeries) else self.histograms
        slot = registry._slots[series.name, tags]
        return slot if registry.series[slot].describe() == series.describe() else -1

    def check(self):
        for series, place in self.known.items():
            assert int(self.places.table[place]) == self.slot(series, self.context), series
        for series, entry in self.entries.items():
            assert int(entry.table) == entry.slot == self.slot(series, self.context), series

    def claim(self, series, chance):
        with contextlib.suppress(TrackerValueError):
            self.known[series] = self.places.claim(series)

    def hold(self, series, chance):
        with contextlib.suppress(TrackerValueError):
            self.entries[series] = self.places.entry(series)

    def log_otherwise(self, series, chance):
        other = {"reduce": "last"} if isinstance(series, ScalarSeries) else {"binning": IntegerBinning(bins=3)}
        registry = self.scalars if isinstance(series, ScalarSeries) else self.histograms
        with contextlib.suppress(TrackerValueError):  # unless only code that another run has claimed it for is there
            registry.slot(replace(series, **other))

    def ask_elsewhere(self, series, chance):
        if series in self.known or series in self.entries:
            context = chance.choice(CONTEXTS)
            assert self.places.slot(series, context) == self.slot(series, context)

    def turn(self, series, chance):
        self.context = chance.choice(CONTEXTS)
        self.places.refill(self.context)

    def start_anew(self, series, chance):
        self.scalars.clear()
        self.histograms.clear()
        self.places.start()
        self.scalars.slot(ScalarSeries("of this run", (), "last"))  # so that slots are others
        self.context = ()
        self.places.refill(())


@pytest.mark.parametrize("seed", range(60))
def test_claims_handles_contexts_and_runs_in_any_order(seed):
    chance, jobs = random.Random(seed), [Job(), Job()]
    ways = [Job.claim, Job.hold, Job.hold, Job.ask_elsewhere, Job.turn, Job.turn, Job.start_anew, None]
    ways += [Job.log_otherwise]
    for _ in range(60):
        job, way = chance.choice(jobs), chance.choice(ways)
        if way is not None:
            way(job, chance.choice(SERIES), chance)
        else:  # what the other has had compiled is called here
            other = jobs[1 - jobs.index(job)]
            job.places.adopt(f"run {jobs.index(other)}", other.places.claimed)
            job.known |= other.places.claimed
        job.check()


def test_what_code_of_another_run_contradicts_is_not_written_to_its_slot(caplog):
    """It may be called here, where its name is another series: nobody knows before it runs."""
    caplog.set_level("INFO")
    old, job = Job(), Job()
    claimed = ScalarSeries("loss", (), "max")
    old.claim(claimed, None)
    job.places.adopt("run 0", old.places.claimed)
    slot = job.slot(claimed, ())
    assert int(job.places.table[old.known[claimed]]) == slot
    assert job.scalars.slot(ScalarSeries("loss", (), "mean")) == slot
    assert int(job.places.table[old.known[claimed]]) == -1
    assert "code of an earlier run logs to series 'loss' goes nowhere: it has reduce='mean' here" in caplog.text
