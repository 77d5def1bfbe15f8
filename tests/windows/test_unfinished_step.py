"""What was written of an unfinished step merges with that step, and with no other."""

import pytest
import torch


@pytest.fixture
def tracked(recorded):
    return recorded(sync_every=100)


def test_a_step_merges_with_its_own_part_alone(tracked):
    with tracked.open() as run:
        run.set_step(1)
        run.scalar("x", 1.0)
        run.flush()
        run.set_step(2)
        run.scalar("y", 1.0)
        run.flush()
        run.scalar("x", 3.0)
    assert tracked.run.points("x") == {1: 1.0, 2: 3.0}


def test_a_step_merges_with_all_of_its_parts(tracked):
    with tracked.open() as run:
        run.set_step(1)
        for value in (1.0, 2.0, 6.0):
            run.scalar("x", value)
            run.bins("values", torch.ones(4))
            run.flush()
            run.scalar("between", 1.0)
            run.flush()
    assert tracked.run.points("x") == {1: 3.0}
    assert tracked.run.histograms("values")[1].count == 12


def test_a_histogram_of_an_earlier_step_is_not_counted_again(tracked):
    with tracked.open() as run:
        run.set_step(1)
        run.bins("values", torch.ones(4))
        run.set_step(2)
        run.scalar("x", 1.0)
        run.flush()
        run.bins("values", torch.ones(4))
    assert {step: one.count for step, one in tracked.run.histograms("values").items()} == {1: 4, 2: 4}
