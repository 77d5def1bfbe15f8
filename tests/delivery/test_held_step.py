"""A step that has not ended is held back whole, and passed on once it has."""

from dataclasses import replace

from d9d_tracker.delivery.held_step import HeldStep
from d9d_tracker.points import Points
from d9d_tracker.record import Record


def points(*values):
    return Points.of([Record(name, step, context, value) for name, step, context, value in values])


def content(passed):
    return [(record.name, record.step, dict(record.context), record.value) for record in passed]


def test_a_name_in_two_contexts_is_two_series():
    held = HeldStep()
    both = [("loss", 1, {"stage": "eval"}, 1.0), ("loss", 1, {"stage": "train"}, 2.0)]
    passed, _ = held.pass_on(points(*both), 1, unfinished=1)
    assert not passed
    passed, _ = held.pass_on(points(), 2, unfinished=None)
    assert content(passed) == both


def test_the_window_that_writes_a_held_step_begins_with_it():
    held = HeldStep()
    passed, first = held.pass_on(points(("a", 0, {}, 0.0), ("a", 1, {}, 1.0)), 0, unfinished=1)
    assert (content(passed), first) == ([("a", 0, {}, 0.0)], 0)
    passed, first = held.pass_on(points(("a", 1, {}, 3.0), ("a", 2, {}, 2.0)), 2, unfinished=None)
    assert (content(passed), first) == ([("a", 1, {}, 3.0), ("a", 2, {}, 2.0)], 1)


def test_what_holds_nothing_takes_nothing_back():
    held = HeldStep()
    given = points(("a", 4, {}, 1.0))
    assert held.pass_on(given, 4, unfinished=None) == (given, 4)
    passed, first = held.pass_on(points(("a", 5, {}, 1.0)), 5, unfinished=6)
    assert (content(passed), first, held.step) == ([("a", 5, {}, 1.0)], 5, None)


def test_hyperparameters_do_not_wait_for_a_step():
    held = HeldStep()
    passed, _ = held.pass_on(replace(points(("a", 1, {}, 1.0)), hparams={"lr": 0.1}), 1, unfinished=1)
    assert (len(passed), passed.hparams) == (0, {"lr": 0.1})
