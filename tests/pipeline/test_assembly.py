"""Windows of several ranks become points: the steps that all have ended, and what came late in its place."""

import pytest
from window_of import window_of

from d9d_tracker.bank.staging import Window
from d9d_tracker.delivery.report import RunReport
from d9d_tracker.pipeline.assembly import Assembly, State, _with_late
from d9d_tracker.pipeline.nonfinite import NonFiniteWatch
from d9d_tracker.ranks.lead import Lead
from d9d_tracker.record import Record
from d9d_tracker.windows.host_window import HostWindow, merge_windows
from d9d_tracker.windows.late import Late


class Nowhere:
    """A board that nobody reads."""

    def put(self, *_):
        pass


class Others(Lead):
    """Rank 0, whose windows meet those of other ranks that a test gives, each up to a point."""

    def __init__(self):
        super().__init__(Nowhere(), 0, 2, 1.0)  # pyright: ignore[reportArgumentType] a board that nobody reads
        self.comes: list[tuple[HostWindow, int]] = []

    def _meet(self, window, point, note):
        theirs, their_point = self.comes.pop(0)
        return self._handed_on(merge_windows(window, theirs), {0: point, 1: their_point})


class Arrived(Window):
    """A window that has arrived."""

    def wait(self):
        return self.host


def window(index, values, unfinished=None, late=()):
    host = window_of(values, reduce="sum", index=index)
    found = Arrived(index, host.steps, host.times, host.scalars, [], Late(list(late)), unfinished)
    found.host = host
    return found


@pytest.fixture
def ranks():
    return Others()


@pytest.fixture
def assembly(ranks):
    report = RunReport()
    return Assembly(0, ranks, NonFiniteWatch(0, True, report, None), report, State(), False)


def written(finished):
    return {(one.name, one.step): one.value for one in finished.points}


def theirs(values):
    return window_of(values, reduce="sum")


def test_a_flush_for_which_all_steps_are_held_back_loses_nothing(assembly, ranks):
    """Rank 1 flushes within step 0 already, rank 0 within step 2."""
    ranks.comes = [(theirs({0: {"x": [1.0]}}), 0), (theirs({0: {"x": [1.0]}, 3: {"x": [1.0]}}), 7)]
    steps = {step: {"x": [1.0]} for step in range(3)}
    late = [Record("y", 1, {}, 5.0), Record("y", 9, {}, 5.0)]
    first = assembly.take([window(0, steps, unfinished=2, late=late)])
    assert first is not None
    assert written(first) == {}
    second = assembly.take([window(1, {2: {"x": [1.0]}, 3: {"x": [1.0]}})])
    assert written(second) == {("x", 0): 3.0, ("x", 1): 1.0, ("x", 2): 2.0, ("x", 3): 2.0, ("y", 1): 5.0}
    assert second.contents.first == 0


def test_a_step_that_another_rank_flushes_once_more_keeps_what_was_written(assembly, ranks):
    both = {3: {"x": [1.0]}}
    ranks.comes = [(theirs(both), 6), (theirs(both), 6), (theirs(both | {4: {"x": [1.0]}}), 9)]
    assert written(assembly.take([window(0, both, unfinished=3)])) == {("x", 3): 2.0}
    assert written(assembly.take([window(1, {3: {}, 4: {"x": [1.0]}})])) == {}
    assert written(assembly.take([window(2, {5: {"x": [1.0]}})])) == {("x", 3): 4.0, ("x", 4): 2.0}


def test_of_several_ranks_the_lowest_has_the_last_word(assembly, ranks):
    ranks._notes = [
        (rank, _with_late(b"", Late([Record("y", 0, {}, float(10 * rank + time))])))
        for rank in (1, 2)
        for time in (0, 1)
    ]
    ranks.comes = [(theirs({0: {"x": [1.0]}}), 1)]
    found = assembly.take([window(0, {0: {"x": [1.0]}})])
    assert written(found)["y", 0] == 11.0


def test_hyperparameters_alone_take_no_step_back(assembly, ranks):
    assembly._late = Late(hparams={"lr": 0.1})
    ranks._others = []
    (last,) = assembly.finish()
    assert last.points.hparams == {"lr": 0.1}
    assert last.contents.first > 2**60
