"""What a state says of the run that goes on with it."""

import pytest

from d9d_tracker.pipeline.assembly import State
from d9d_tracker.pipeline.checkpoint import BackendState, Snapshot, read, save
from d9d_tracker.series.series import ScalarSeries
from d9d_tracker.windows.host_window import HostWindow, empty_window
from d9d_tracker.windows.in_transit import InTransit, Logged


def state_of(step: int, in_transit: InTransit) -> Snapshot:
    return Snapshot("step", step, 0, 4, rows(step), BackendState("JsonlTracker", {}), State(in_transit=in_transit))


def rows(*steps: int) -> HostWindow:
    return empty_window(0, list(steps), [0.0] * len(steps), [ScalarSeries("x", (), "sum")], [])


@pytest.mark.parametrize(
    ("in_transit", "step"),
    [
        (InTransit(), 9),
        (InTransit(held=rows(4, 5)), 4),  # other ranks were waited for: meanwhile, the backends may have them
        (InTransit([Logged(1, 3, rows(6, 7))], rows(7), {1: 3}), 6),
        (InTransit([Logged(1, 2, rows(2, 3))], rows(7), {1: 3}), 7),  # rank 0 has that window
        (InTransit([Logged(1, 3, rows(2, 3))], rows(7), {1: 3}, unwritten=7), 7),  # what came too late changes nothing
    ],
)
def test_the_backends_are_to_hold_nothing_from_the_first_step_on_that_is_not_written(in_transit, step):
    assert state_of(9, in_transit).rewind_to == step


def test_a_state_without_a_step_is_damaged():
    state = save(state_of(9, InTransit()))
    state["table"] = state["table"].replace('"steps":[9]', '"steps":[]')
    with pytest.raises(ValueError, match="the state of the tracker is damaged"):
        read(state)
