"""What is not finite is told once a series, with where it began; a callback never stops the training."""

import logging
import math
import threading
import time

import pytest
import torch

from d9d_tracker import AccumulatorConfig, Histogram, NonFinite, RunConfig
from d9d_tracker.accumulator import AccumulatingTracker
from d9d_tracker.testing import RecordingTracker

NAME = RunConfig(name="x")


@pytest.fixture
def tracked(config):
    def make(callback=None):
        return AccumulatingTracker(RecordingTracker(), AccumulatorConfig(**config), on_nonfinite=callback)

    return make


def warnings(caplog):
    return [r.message for r in caplog.records if r.levelno == logging.WARNING and "not finite" in r.message]


@pytest.mark.parametrize("reduce", ["mean", "sum", "min", "max", "last"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_scalar_is_told_with_its_first_step(tracked, caplog, reduce, value):
    tracker = tracked()
    with tracker.open(NAME) as run:
        for step in range(12):
            run.set_step(step)
            run.scalar("fine", 1.0)
            run.scalar("loss", torch.tensor(value if step in (6, 7, 9) else 1.0), {"stage": "train"}, reduce=reduce)
    assert tracker.report.nonfinite == [NonFinite("loss", {"stage": "train"}, 6, 6, str(value))]
    assert warnings(caplog) == [f"not finite for the first time: loss stage=train: {value} at step 6"]


def test_a_histogram_is_told_with_its_first_window_and_how_many(tracked, caplog):
    tracker = tracked()
    values = torch.ones(1500)
    values[:17] = math.nan
    values[17], values[18] = math.inf, -math.inf
    with tracker.open(NAME) as run:
        for step in range(12):
            run.set_step(step)
            run.bins("gradients", values if step in (5, 9) else torch.ones(1500))
    assert tracker.report.nonfinite == [NonFinite("gradients", {}, 4, 7, "", 17, 2, 6000)]
    words = "gradients: 17 NaN and 2 infinite of 6,000 elements, between steps 4 and 7"
    assert warnings(caplog) == [f"not finite for the first time: {words}"]


def test_what_comes_finished_is_told_with_its_own_step(tracked, caplog):
    tracker = tracked()
    counted = {"zeros": 0, "posinf": 0, "neginf": 2, "sum": 1.0, "sum_squares": 1.0, "min": 0.5, "max": 0.5}
    histogram = Histogram(edges=[0.0, 1.0], counts=[1], nan=3, **counted)
    with tracker.open(NAME) as run:
        for step in range(12):
            run.set_step(step)
            if step in (6, 9):
                run.log_at(2, {"val/loss": math.nan, "outputs": histogram, "fine": 1.0}, {"stage": "val"})
    tags = {"stage": "val"}
    assert tracker.report.nonfinite == [
        NonFinite("val/loss", tags, 2, 2, "nan"),
        NonFinite("outputs", tags, 2, 2, "", 3, 2, 6),
    ]
    words = "val/loss stage=val: nan at step 2; outputs stage=val: 3 NaN and 2 infinite of 6 elements, at step 2"
    assert warnings(caplog) == [f"not finite for the first time: {words}"]


def test_windows_in_which_all_is_finite_say_nothing(tracked, caplog):
    tracker = tracked()
    with tracker.open(NAME) as run:
        for step in range(9):
            run.set_step(step)
            run.scalar("zero weight", 1.0, weight=0.0)
            run.scalar("largest", torch.finfo(torch.float64).max, reduce="last")
            run.bins("empty", torch.empty(0))
    assert tracker.report.nonfinite == []
    assert warnings(caplog) == []


def test_many_at_once_are_one_message(tracked, caplog):
    tracker = tracked()
    with tracker.open(NAME) as run:
        for number in range(8):
            run.scalar(f"s{number}", math.nan)
    assert len(tracker.report.nonfinite) == 8
    (words,) = warnings(caplog)
    assert words.count("nan at step 0") == 5
    assert words.endswith("and 3 more series, in tracker.report.nonfinite")


def test_a_callback_gets_them_off_the_training_thread(tracked):
    told, threads = [], set()

    def callback(found):
        threads.add(threading.current_thread())
        told.append([one.name for one in found])

    with tracked(callback).open(NAME) as run:
        for step in range(12):
            run.set_step(step)
            run.scalar("a", math.nan)
            run.scalar("b", math.nan if step > 5 else 0.0)
            if step == 5:
                run.flush()
    assert told == [["a"], ["b"]]
    assert threading.main_thread() not in threads


def test_a_callback_that_raises_is_logged_and_training_goes_on(tracked, caplog):
    tracker = tracked(lambda found: 1 / 0)
    with tracker.open(NAME) as run:
        for step in range(12):
            run.set_step(step)
            run.scalar("a", math.nan)
    assert tracker.report.delivered == 12
    assert "on_nonfinite raised" in caplog.text


def test_a_callback_that_hangs_delays_the_end_by_a_second_and_no_window(tracked, caplog):
    ends = threading.Event()
    tracker = tracked(lambda found: ends.wait(60))
    with tracker.open(NAME) as run:
        for step in range(12):
            run.set_step(step)
            run.scalar("a", math.nan)
        run.flush()
        assert tracker.report.delivered == 12
        began = time.monotonic()
    assert time.monotonic() - began < 30
    assert "on_nonfinite has not returned" in caplog.text
    ends.set()


def test_an_exception_is_told_with_the_last_values(tracked, caplog):
    tracker = tracked()
    run = tracker.start(NAME)
    for step in range(7):
        run.set_step(step)
        run.scalar("loss", 0.5 * step, {"stage": "train"})
        run.scalar("lr", 0.1)
    run.finish(RuntimeError("the loss exploded"))
    (words,) = (r.message for r in caplog.records if r.levelno == logging.ERROR)
    assert words == (
        "run 'x' was ended at step 6 by RuntimeError: the loss exploded; last values: loss stage=train 3 (step 6), "
        "lr 0.1 (step 6)"
    )


def test_a_callback_for_which_no_thread_is_left_costs_no_window(tracked, caplog, monkeypatch):
    tracker = tracked(lambda found: None)
    start = threading.Thread.start

    def none_left(thread):
        if thread.name == "d9d_tracker on_nonfinite":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", none_left)
    with tracker.open(NAME) as run:
        for step in range(12):
            run.set_step(step)
            run.scalar("a", math.nan)
    assert (tracker.report.delivered, tracker.report.unread) == (12, 0)
    assert "on_nonfinite is not called" in caplog.text


def test_steps_without_a_value_are_no_infinities(tracked, caplog):
    tracker = tracked()
    with tracker.open(NAME) as run:
        for step in range(12):
            run.set_step(step)
            run.scalar("always", 1.0)
            if step % 3 == 0:
                run.scalar("most", 1.0, reduce="max")
                run.scalar("least", 1.0, reduce="min")
    assert tracker.report.nonfinite == []
    assert warnings(caplog) == []
