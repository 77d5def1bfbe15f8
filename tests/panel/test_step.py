"""What ``run.monitor()`` logs of steps, on a clock that is moved by hand; on a GPU it is in tests/sim/test_panel.py."""

import pytest
import torch

from d9d_tracker import TrackerValueError


def test_a_step_lasts_from_one_set_step_to_the_next(recorded, hand):
    tracker = recorded(sync_every=3)
    with tracker.open() as run:
        run.monitor()
        run.clock.seconds = hand
        for step in (0, 1, 1, 2, 5, 6, 7, 8):
            run.set_step(step)
            hand.now += step + 1
    assert tracker.run.points("time/step") == {0: 1.0, 1: 2.0 + 2.0, 2: 3.0, 5: 6.0, 6: 7.0, 7: 8.0}
    assert not {"time/device", "time/idle", "time/step/host"} & {record.name for record in tracker.run.records}


def test_a_loop_that_begins_at_1_or_goes_on_has_no_step_before_its_first(recorded, hand):
    before, after = recorded(sync_every=3), recorded(sync_every=3)
    with before.open() as run:
        run.monitor()
        run.clock.seconds = hand
        for step in range(1, 6):
            run.set_step(step)
            hand.now += step
        state = before.tracker.state_dict()
    after.tracker.load_state_dict(state)
    with after.open() as run:
        hand.now += 1000
        run.monitor()
        run.clock.seconds = hand
        for step in range(5, 9):
            run.set_step(step)
            hand.now += step
    assert before.run.points("time/step") == {step: float(step) for step in range(1, 5)}
    assert after.run.points("time/step") == {step: float(step) for step in range(3, 8)}  # of the open window, too


def test_steps_that_compile_are_told_apart(recorded, hand):
    tracker = recorded(sync_every=3)
    torch.compiler.reset()
    compiled = torch.compile(lambda values: values + 1, backend="eager", dynamic=False)
    with tracker.open() as run:
        run.monitor()
        run.clock.seconds = hand
        for step, size in enumerate([2, 2, 2, 3, 3, 2]):
            run.set_step(step)
            run.rate("tokens", size)
            compiled(torch.ones(size))
            hand.now += 1
        run.set_step(6)
    found = {record.step: dict(record.context) for record in tracker.run.records if record.name == "time/step"}
    assert {step for step, context in found.items() if context == {"compiling": "true"}} == {0, 3}
    assert {step for step, context in found.items() if context == {}} == {1, 2, 4, 5}
    assert tracker.run.points("tokens/s").keys() == {1, 2, 4, 5}
    assert tracker.run.points("tokens").keys() == set(range(6))


def test_without_it_steps_have_no_time(recorded):
    tracker = recorded(sync_every=3)
    with tracker.open() as run:
        for step in range(5):
            run.set_step(step)
    with tracker.open() as run:  # what the run before had is gone
        run.monitor()
    with tracker.open() as run:
        for step in range(5):
            run.set_step(step)
    assert tracker.run.records == []


@pytest.mark.parametrize("name", ["time/step", "memory/host"])
def test_what_was_logged_otherwise_is_refused_at_once_and_not_in_the_midst_of_training(recorded, name):
    with recorded(sync_every=2).open() as run:
        run.scalar(name, 1.0)
        with pytest.raises(TrackerValueError, match=name):
            run.monitor()
        for step in range(5):
            run.set_step(step)
