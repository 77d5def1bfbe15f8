"""Interleaved timing: every subject in one process, round after round, so that drift hits all alike."""

import gc
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch


@dataclass(frozen=True)
class Spread:
    """The median of some samples, with their first and third quartile.

    Attributes:
        median: The median.
        low: The first quartile.
        high: The third quartile.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: list[float]) -> Self:
        low, median, high = np.percentile(samples, (25, 50, 75))
        return cls(float(median), float(low), float(high))

    def scaled(self, factor: float) -> Self:
        """Return it in another unit."""
        return type(self)(self.median * factor, self.low * factor, self.high * factor)


@dataclass
class Subject:
    """Something to time.

    Attributes:
        run: Does the work ``steps`` times; this is what is timed.
        steps: How often in a round.
        before: Runs before each round, untimed.
        settle: Waits until what the round began in the background has ended, untimed here.
        window: Steps that belong together: fewer steps than asked for are still whole windows, if one fits.
    """

    run: Callable[[int], object]
    steps: int
    before: Callable[[], object] = lambda: None
    settle: Callable[[], object] = lambda: None
    window: int = 1


@dataclass
class Timing:
    """What was measured of one subject: one sample a round, in the same order for all subjects.

    Attributes:
        loop: Seconds per step.
    """

    loop: list[float] = field(default_factory=list)

    def ratio(self, baseline: "Timing") -> Spread:
        """Compare with a baseline, round by round."""
        return Spread.of([own / other for own, other in zip(self.loop, baseline.loop, strict=True)])


def interleave(subjects: Mapping[str, Subject], *, rounds: int, round_seconds: float, device: str) -> dict[str, Timing]:
    """Time subjects in turns, in a new order each round.

    Args:
        subjects: What to time, by name. Each runs for two rounds untimed first.
        rounds: How many rounds each is timed.
        round_seconds: A subject whose round would take longer does fewer steps, at least one.
        device: ``"cpu"`` or ``"cuda"``, to wait for at both ends of a sample.
    """
    steps = {name: subject.steps for name, subject in subjects.items()}
    for name, subject in subjects.items():
        _sample(subject, 1, device)  # compiles
        seconds = _sample(subject, max(1, subject.steps // 10), device)
        fitting = max(1, min(subject.steps, int(round_seconds / seconds)))
        steps[name] = fitting - fitting % subject.window if fitting > subject.window else fitting
    timings = {name: Timing() for name in subjects}
    order, shuffle = list(subjects), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            timings[name].loop.append(_sample(subjects[name], steps[name], device))
    return timings


def synchronize(device: str) -> None:
    """Wait for a GPU; a CPU is always done."""
    if device == "cuda":
        torch.cuda.synchronize()


def _sample(subject: Subject, steps: int, device: str) -> float:
    gc.collect()
    subject.before()
    synchronize(device)
    start = time.perf_counter()
    subject.run(steps)
    synchronize(device)
    loop = time.perf_counter() - start
    subject.settle()
    return loop / steps
