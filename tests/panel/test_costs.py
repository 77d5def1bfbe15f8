"""What all of the panel costs a step on a CPU, in calls of the training thread; and that real times are sound."""

import sys
import threading
import time

from d9d_tracker.panel import system

STEPS, WINDOW = 40, 10
# A call is about 750 instructions of a CPU.
CALLS = 49


def calls_of(run, panel):
    """How many functions are called in a step, those in C included, in windows that have begun and end as others do."""
    counted = 0

    def count(frame, event, argument):
        nonlocal counted
        counted += event in ("call", "c_call")

    loader = range(STEPS)
    if panel:
        run.monitor()
        loader = run.timed(loader)
    for step in loader:
        if step == STEPS - 2 * WINDOW:
            sys.setprofile(count)
        if step == STEPS - 1:
            sys.setprofile(None)
        run.set_step(step)
        run.scalar("loss", 1.0)
        if panel:
            with run.time("forward"):
                pass
            run.rate("tokens", 4096)
    return counted / (2 * WINDOW - 1)


def test_all_of_it_is_a_few_calls_a_step(recorded, monkeypatch):
    monkeypatch.setattr(system, "find_spec", lambda name: None)
    found = {False: [], True: []}
    for panel in (False, True) * 4:
        with recorded(sync_every=WINDOW).open() as run:
            found[panel].append(calls_of(run, panel))
    # The least of each, because a window's end takes a few more if the collector is just waiting for one.
    assert 0 < min(found[True]) - min(found[False]) <= CALLS, found


def test_real_times_lie_within_their_bounds(recorded):
    tracker = recorded(sync_every=3)
    bounds = []
    with tracker.open() as run:
        run.monitor()
        for step in range(6):
            outside = time.perf_counter()
            run.set_step(step)
            with run.time("sleep"):
                inside = time.perf_counter()
                threading.Event().wait(0.002)
                inside = time.perf_counter() - inside
            bounds.append((inside, outside))
        ended = time.perf_counter()
    blocks, steps = tracker.run.points("time/sleep"), tracker.run.points("time/step")
    for step, (inside, _) in enumerate(bounds):
        assert inside <= blocks[step]
    for step in range(5):
        assert blocks[step] <= steps[step]
    assert sum(steps.values()) <= ended - bounds[0][1]
