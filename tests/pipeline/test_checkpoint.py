"""What a state says of the run that goes on with it."""

import pytest

from d9d_tracker.pipeline.checkpoint import BackendState, Snapshot, read, save
from d9d_tracker.series.registry import ScalarSeries
from d9d_tracker.windows.host_window import HostWindow, empty_window
from d9d_tracker.windows.late import Late
from d9d_tracker.windows.moving import Logged, Moving


def state_of(step: int, moving: Moving) -> Snapshot:
    return Snapshot("step", step, 0, 4, rows(step), None, Late(), BackendState("JsonlTracker", {}), moving=moving)


def rows(*steps: int) -> HostWindow:
    return empty_window(0, list(steps), [0.0] * len(steps), [ScalarSeries("x", (), "sum")], [])


@pytest.mark.parametrize(
    ("moving", "step"),
    [
        (Moving(), 9),
        (Moving(held=rows(4, 5)), 4),  # that other ranks were waited for: of a later moment, the backends may have them
        (Moving([Logged(1, 3, rows(6, 7))], rows(7), {1: 3}), 6),
        (Moving([Logged(1, 2, rows(2, 3))], rows(7), {1: 3}), 7),  # rank 0 has that window
        (Moving([Logged(1, 3, rows(2, 3))], rows(7), {1: 3}, unwritten=7), 7),  # and what came too late changes nothing
    ],
)
def test_the_backends_are_to_hold_nothing_from_the_first_step_on_that_is_not_written(moving, step):
    assert state_of(9, moving).rewind_to == step


def test_a_state_without_a_step_is_damaged():
    state = save(state_of(9, Moving()))
    state["table"] = state["table"].replace('"steps":[9]', '"steps":[]')
    with pytest.raises(ValueError, match="the state of the tracker is damaged"):
        read(state)
