"""States of ranks that were not at the same point of their window become one that is whole."""

import pytest

from d9d_tracker.pipeline import checkpoint, job_state
from d9d_tracker.pipeline.assembly import State
from d9d_tracker.pipeline.checkpoint import BackendState, Snapshot
from d9d_tracker.record import Record
from d9d_tracker.series.series import ScalarSeries
from d9d_tracker.windows.host_window import empty_window
from d9d_tracker.windows.late import Late
from d9d_tracker_kernels.lanes import COUNT, SUM


def snapshot(resolution, steps, first, passed, windows, late=()):
    """A rank that has logged 1 in each of these steps, the last of which is the current one."""
    window = empty_window(0, list(steps), [0.0] * len(steps), [ScalarSeries("x", (), "sum")], [])
    window.lanes[:, [SUM, COUNT]] = 1.0
    backend = BackendState("JsonlTracker", {"run_id": "run"}, "backlog")
    return Snapshot(resolution, first, passed, windows, window, backend, State(late=Late(list(late))))


def test_ranks_that_were_uneven_go_on_as_the_one_that_was_furthest():
    ranks = [snapshot("step", [3, 5], 3, 2, 7), snapshot("step", [1, 2, 6], 1, 4, 8)]
    for some in (ranks, ranks[::-1]):
        merged = job_state.merged(some)
        assert merged.window.steps == [1, 2, 3, 5, 6]
        assert (merged.first, merged.passed, merged.windows) == (1, 4, 8)
        again = checkpoint.read(checkpoint.save(merged))
        assert (again.first, again.passed, again.window.steps) == (1, 4, [1, 2, 3, 5, 6])


def test_there_are_as_many_steps_as_rows():
    ranks = [snapshot("step", [1, 3, 5], 1, 2, 0), snapshot("step", [2, 4, 6], 2, 2, 0)]
    assert job_state.merged(ranks).passed == 5
    checkpoint.read(checkpoint.save(job_state.merged(ranks)))


@pytest.mark.parametrize("steps", [(4, 6), (6, 4)])
def test_where_a_window_has_one_point_it_stays_one_row(steps):
    merged = job_state.merged([snapshot("window", [step], 0, step, 0) for step in steps])
    assert merged.window.steps == [6]
    assert merged.window.lanes[0, SUM, 0] == 2.0
    checkpoint.read(checkpoint.save(merged))


def test_of_what_came_late_the_lowest_rank_has_the_last_word():
    late = [[Record("x", 1, {}, float(rank))] for rank in range(2)]
    merged = job_state.merged([snapshot("step", [3], 3, 0, 0, one) for one in late])
    assert [record.value for record in merged.left.late.points()] == [0.0]
