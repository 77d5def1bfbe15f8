"""What all of the panel costs a step on a CPU, in calls of the training thread; and that real times are sound."""

import sys
import threading
import time
from pathlib import Path

import d9d_tracker
from d9d_tracker.panel import system

PACKAGE = str(Path(d9d_tracker.__file__).parent)

STEPS, WINDOW = 40, 10
# A call is about 750 instructions of a CPU.
CALLS = 48


def calls_of(run, panel):
    """How many functions a step calls, those in C included, in windows that have begun and end as others do.

    Those of the package and those that it calls: what the standard library calls for a window that ends depends on
    whether its collector is just waiting for one.
    """
    counted = 0

    def count(frame, event, argument):
        nonlocal counted
        caller = frame.f_back if event == "call" else frame
        is_ours = any(each.f_code.co_filename.startswith(PACKAGE) for each in (frame, caller))
        counted += is_ours and event in ("call", "c_call")

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
    assert 0 < min(found[True]) - max(found[False]) <= max(found[True]) - min(found[False]) <= CALLS, found


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
