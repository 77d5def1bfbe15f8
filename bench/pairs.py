"""Timing against a neighbour: a subject and the baseline take turns every few windows, and are compared pair by pair.

A shared machine is slow for a second and quick for the next. Neighbours share their moment, and the median of many
pairs with a bootstrap interval says how well the rest is known. The baseline takes part as a subject too: what it is
told to cost against itself is what the benchmark cannot see.
"""

import gc
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .interleave import Spread, Subject, synchronize

_RESAMPLES = 2000


@dataclass
class Pairs:
    """What was measured of one subject: one entry a turn.

    Attributes:
        loop: Seconds per step.
        neighbour: Seconds per step of the baseline, right before or after.
        settled: Seconds per step, until the background work has ended.
        neighbour_settled: The same of the baseline.
    """

    loop: list[float] = field(default_factory=list)
    neighbour: list[float] = field(default_factory=list)
    settled: list[float] = field(default_factory=list)
    neighbour_settled: list[float] = field(default_factory=list)

    def ratio(self, *, settled: bool = False) -> Spread:
        """Compare with the baseline."""
        own, other = (self.settled, self.neighbour_settled) if settled else (self.loop, self.neighbour)
        return interval([one / two for one, two in zip(own, other, strict=True)])

    def added(self) -> Spread:
        """The difference from the baseline in seconds per step."""
        return interval([own - other for own, other in zip(self.loop, self.neighbour, strict=True)])


def interval(samples: list[float]) -> Spread:
    """Return the median, and the bootstrap interval that holds it with 95 % confidence.

    Source: B. Efron and R. Tibshirani, An Introduction to the Bootstrap, chapter 13: the percentile interval.
    """
    drawn = np.random.default_rng(0).choice(samples, (_RESAMPLES, len(samples)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return Spread(float(np.median(samples)), float(low), float(high))


def take_turns(
    subjects: Mapping[str, Subject], baseline: Subject, *, turns: int, windows: int, device: str
) -> dict[str, Pairs]:
    """Time subjects beside a baseline.

    A turn is a window that is not timed, so that the background is at work, and ``windows`` that are.

    Args:
        subjects: What to time, by name, each in windows of ``Subject.window`` steps.
        baseline: What to compare with.
        turns: How many each has.
        windows: How many windows of a turn are timed.
        device: ``"cpu"`` or ``"cuda"``, to wait for at both ends of a sample.
    """
    for subject in (baseline, *subjects.values()):
        for _ in range(2):  # compiles, and comes to rest
            _turn(subject, windows, device)
    gc.collect()
    gc.freeze()  # or each turn begins with a third of a second in what the packages have imported
    found = {name: Pairs() for name in subjects}
    order, chance = list(subjects), random.Random(0)
    for _ in range(turns):
        chance.shuffle(order)
        for name in order:
            pair = [subjects[name], baseline]
            chance.shuffle(pair)
            times = {id(one): _turn(one, windows, device) for one in pair}
            pairs = found[name]
            for own, other, one in ((pairs.loop, pairs.neighbour, 0), (pairs.settled, pairs.neighbour_settled, 1)):
                own.append(times[id(subjects[name])][one])
                other.append(times[id(baseline)][one])
    gc.unfreeze()
    return found


def _turn(subject: Subject, windows: int, device: str) -> tuple[float, float]:
    gc.collect()
    subject.before()
    synchronize(device)
    begin = time.perf_counter()
    subject.run(subject.window)
    synchronize(device)
    start = time.perf_counter()
    subject.run(windows * subject.window)
    synchronize(device)
    end = time.perf_counter()
    subject.settle()
    settled = time.perf_counter()
    return (end - start) / (windows * subject.window), (settled - begin) / ((1 + windows) * subject.window)
