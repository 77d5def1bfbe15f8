"""Blocks that are timed, on a clock that is moved by hand; on a GPU they are in tests/sim/test_panel.py."""

import asyncio
import threading

import pytest
import torch
from torch import nn

from d9d_tracker import TrackerTypeError, TrackerValueError, log
from d9d_tracker.windows.readings import Later


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    monkeypatch.setattr(log, "_said", set())


def test_blocks_of_a_step_add_up_however_they_are_nested_and_repeated(recorded, hand):
    tracker = recorded(sync_every=2)
    with tracker.open() as run:
        run.clock.seconds = hand

        @run.time("deep")
        def deep(depth):
            hand.now += 1
            if depth:
                deep(depth - 1)

        again = run.time("again")
        for step in range(3):
            run.set_step(step)
            for _ in range(4):
                with run.time("micro"):
                    hand.now += 0.25 * (step + 1)
            deep(2)
            with again, again:
                hand.now += 2
    for name in ("micro", "deep", "again"):
        assert tracker.run.points(f"time/{name}") == tracker.run.points(f"time/{name}/host")
    assert tracker.run.points("time/micro") == {0: 1.0, 1: 2.0, 2: 3.0}
    assert tracker.run.points("time/deep") == dict.fromkeys(range(3), 3.0 + 2.0 + 1.0)
    assert tracker.run.points("time/again") == dict.fromkeys(range(3), 4.0)


def test_a_coroutine_is_timed_until_its_end_and_a_generator_is_refused(recorded, hand):
    tracker = recorded(sync_every=2)
    with tracker.open() as run:
        run.clock.seconds = hand

        @run.time("rollout")
        async def rollout(steps):
            for _ in range(steps):
                await asyncio.sleep(0)
                hand.now += 1
            return steps

        async def both():
            return await asyncio.gather(rollout(2), rollout(3))

        assert asyncio.run(both()) == [2, 3]

        def batches():
            yield 1

        with pytest.raises(TrackerTypeError, match=r"'time/data': .*batches is a generator.*run.timed"):
            run.time("data")(batches)
    assert tracker.run.points("time/rollout") == {0: 3.0 + 5.0}  # each with what the other did meanwhile


def test_a_function_that_is_timed_logs_to_the_next_run_too(recorded, hand):
    tracker = recorded(sync_every=2)
    with tracker.open() as run:
        timed = run.time("task")(lambda seconds: setattr(hand, "now", hand.now + seconds))
        block = run.time("block")
        timed(1)
    for _ in range(2):
        tracker.run.records.clear()
        with tracker.open() as run:
            run.clock.seconds = hand
            run.scalar("loss", 7.0)  # has the slot that was the block's
            timed(2)
            with block:
                hand.now += 4
        found = {name: tracker.run.points(name) for name in ("loss", "time/task", "time/task/host", "time/block")}
        assert found == {"loss": {0: 7.0}, "time/task": {0: 2.0}, "time/task/host": {0: 2.0}, "time/block": {0: 4.0}}


def test_a_block_that_spans_steps_counts_for_the_one_in_which_it_ends_and_one_that_raises_for_none(recorded, hand):
    tracker = recorded(sync_every=2)
    with tracker.open() as run:
        run.clock.seconds = hand
        with run.time("long"):
            for step in range(5):
                run.set_step(step)
                hand.now += 1
        for _ in range(2):
            with pytest.raises(ZeroDivisionError), run.time("broken"), run.time("inner"):
                hand.now += 1 / 0
        with run.time("broken"):
            hand.now += 3
    assert tracker.run.points("time/long") == {4: 5.0}
    assert tracker.run.points("time/broken") == {4: 3.0}
    assert tracker.run.points("time/inner") == {}


def test_a_loop_times_what_it_waits_for_and_not_what_it_does(recorded, hand):
    class Loader:
        batch_size = 7

        def __len__(self):
            return 3

        def __iter__(self):
            for batch in range(3):
                hand.now += 10 * (batch + 1)
                yield batch
            hand.now += 1000  # until it knows that it has no more

    tracker = recorded(sync_every=2)
    with tracker.open() as run:
        run.clock.seconds = hand
        loader, seen = run.timed(Loader(), "batches"), []
        assert (len(loader), loader.batch_size) == (3, 7)
        for _ in range(2):
            for batch in loader:
                run.set_step(len(seen))
                seen.append(batch)
                hand.now += 500
        for _ in run.timed([1]):
            break
    assert seen == [0, 1, 2, 0, 1, 2]
    assert tracker.run.points("time/batches") == {0: 10 + 20, 1: 30, 2: 10, 3: 20, 4: 30}
    assert tracker.run.points("time/data") == {5: 0.0}


@pytest.mark.parametrize("how", ["block", "decorator"])
def test_inside_compiled_code_nothing_is_timed_nothing_breaks_and_it_is_said_once(recorded, hand, caplog, how):
    tracker = recorded(sync_every=2)
    torch.compiler.reset()
    with tracker.open() as run:
        run.clock.seconds = hand

        class Model(nn.Module):
            def forward(self, values):
                if how == "decorator":
                    return double(values) + 1
                with run.time("inside"):
                    values = values * 2
                return values + 1

        double = run.time("inside")(lambda values: values * 2)
        compiled = torch.compile(Model(), fullgraph=True, backend="eager")
        for step in range(3):
            run.set_step(step)
            with run.time("call"):
                assert compiled(torch.ones(2 + step)).sum() == 3 * (2 + step)
                hand.now += 1
    assert tracker.run.points("time/inside") == {}
    assert caplog.text.count("in compiled code cannot be timed") == 1
    marked = {record.step: record.context for record in tracker.run.records if record.name == "time/call"}
    compiling = {"compiling": "true"}
    assert marked == {0: compiling, 1: compiling, 2: {}}  # the third size is that of any


def test_what_is_timed_follows_the_context_and_threads_do_not_mix(recorded, hand):
    tracker = recorded(sync_every=4)
    with tracker.open() as run:
        run.clock.seconds = hand
        timed = run.time("task")(lambda seconds: setattr(hand, "now", hand.now + seconds))
        with run.context(stage="eval"):
            timed(2)
        timed(1)
        thread = threading.Thread(target=timed, args=(4,))
        thread.start()
        thread.join()
    found = {
        tuple(record.context.items()): record.value for record in tracker.run.records if record.name == "time/task"
    }
    assert found == {(("stage", "eval"),): 2.0, (): 5.0}


def test_a_step_cut_by_a_flush_or_a_state_is_whole(recorded, hand):
    before, after = recorded(sync_every=4), recorded(sync_every=4)
    with before.open() as run:
        run.clock.seconds = hand
        for step in range(6):
            run.set_step(step)
            for cut in (False, step in (1, 5)):
                if cut:
                    run.flush()
                with run.time("task"):
                    hand.now += 1
        state = before.tracker.state_dict()
    assert before.run.points("time/task") == dict.fromkeys(range(6), 2.0)
    after.tracker.load_state_dict(state)
    with after.open() as run:
        run.clock.seconds = hand
        with run.time("task"):
            hand.now += 1
    assert after.run.points("time/task") == {5: 3.0}


def test_names_are_checked_closed_runs_take_nothing_and_slots_may_run_out(recorded, hand, caplog):
    tracker = recorded(sync_every=2, max_scalars=3)
    with tracker.open() as run:
        with pytest.raises(TrackerTypeError):
            run.time(3)
        with pytest.raises(TrackerValueError):
            run.timed([], "")
        with pytest.raises(TrackerValueError, match=r"time/step. is what run.monitor\(\) logs"):
            run.time("step")
        for name in ("first", "second", "second"):
            with run.time(name):
                pass
        with run.time("open"):
            tracker.tracker.end()
    with run.time("first"):
        pass
    assert tracker.run.points("time/first").keys() == {0}
    assert "is dropped" in caplog.text
    assert tracker.tracker.report.without_slot == 2  # the second's own, twice


def test_an_instrument_that_fails_costs_no_window(recorded, caplog):
    tracker = recorded(sync_every=2)
    with tracker.open() as run:
        for step in range(4):
            run.set_step(step)
            run.scalar("loss", step)
            meter = run.clock.meter
            meter.log(meter.gauge("broken"), Later(lambda: 1 / 0))
            meter.log(meter.gauge("none"), Later(lambda: None))
            meter.log(meter.gauge("there"), 1.0)
    assert tracker.run.points("loss") == tracker.run.points("loss") | {step: float(step) for step in range(4)}
    assert tracker.run.points("there") == dict.fromkeys(range(4), 1.0)
    assert {**tracker.run.points("broken"), **tracker.run.points("none")} == {}
    assert caplog.text.count("an instrument cannot be read") == 1
