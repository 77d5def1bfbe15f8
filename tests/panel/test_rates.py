"""Units a second, their running total, and the fraction of the peak; across ranks in tests/ranks/test_panel.py."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from d9d_tracker import TrackerTypeError, TrackerValueError


def test_units_of_a_step_are_summed_and_divided_by_its_time(recorded, hand):
    tracker = recorded(sync_every=4)
    with tracker.open() as run:
        run.clock.seconds = hand
        for step in range(7):
            run.set_step(step)
            for n in (step, torch.tensor(step), np.int64(1), torch.ones(1, 1)):
                run.rate("tokens", n)
                hand.now += 0.5
            run.rate("steps", 1, flops=100.0, peak=400.0)
    assert tracker.run.points("tokens/s") == {step: step + 1.0 for step in range(1, 6)}  # 0 was begun before
    assert tracker.run.points("tokens") == {step: float(sum(2 * k + 2 for k in range(step + 1))) for step in range(7)}
    assert tracker.run.points("steps/s") == dict.fromkeys(range(1, 6), 0.5)
    assert tracker.run.points("mfu") == dict.fromkeys(range(1, 6), 0.5 * 100 / 400)


@pytest.mark.parametrize("cut", [None, "flush", "state"])
def test_the_total_survives_a_flush_in_mid_step_and_a_resume(recorded, hand, cut):
    first, second = recorded(sync_every=4), recorded(sync_every=4)
    tracker = first
    for begin, end in ((0, 7), (7, 13)):
        with tracker.open() as run:
            run.clock.seconds = hand
            for step in range(begin, end):
                run.set_step(step)
                run.rate("tokens", 3)
                if cut == "flush":
                    run.flush()
                if (cut != "flush") or step % 2:  # with nothing after it, too
                    run.rate("tokens", 2)
                hand.now += 1
            state = tracker.tracker.state_dict()
        if tracker is first:
            if cut is None:
                first.tracker.resume_last()
            else:
                tracker = second
                second.tracker.load_state_dict(state)
    points = {**first.run.points("tokens"), **tracker.run.points("tokens")}
    each = [5 if cut != "flush" or step % 2 else 3 for step in range(13)]
    assert points == {step: float(total) for step, total in enumerate(np.cumsum(each))}
    rates = {**first.run.points("tokens/s"), **tracker.run.points("tokens/s")}
    assert {step: rate for step, rate in rates.items() if step not in (0, 6, 7)} == {
        step: float(each[step]) for step in range(1, 12) if step not in (6, 7)
    }


def test_contexts_have_totals_of_their_own(recorded, hand):
    tracker = recorded(sync_every=4)
    with tracker.open() as run:
        run.clock.seconds = hand
        for step in range(4):
            run.set_step(step)
            run.rate("tokens", 5)
            with run.context(stage="eval"):
                run.rate("tokens", 1)
            hand.now += 2
    found = {}
    for record in tracker.run.records:
        found.setdefault((record.name, record.context.get("stage")), {})[record.step] = record.value
    assert found["tokens", None] == {step: 5.0 * (step + 1) for step in range(4)}
    assert found["tokens", "eval"] == {step: 1.0 * (step + 1) for step in range(4)}
    assert found["tokens/s", None] == dict.fromkeys((1, 2), 2.5)
    assert found["tokens/s", "eval"] == dict.fromkeys((1, 2), 0.5)


def compiled(run):
    def step(values):
        run.rate("tokens", 1)
        return values * 2

    return torch.compile(step, backend="eager", fullgraph=True)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda run: run.rate("", 1), TrackerValueError, "name"),
        (lambda run: run.rate("tokens", "many"), TrackerTypeError, "tokens"),
        (lambda run: run.rate("tokens", torch.ones(2)), TrackerValueError, "tokens"),
        (lambda run: run.rate("tokens", 1, flops=1.0), TrackerValueError, "peak=None go together"),
        (lambda run: run.rate("tokens", 1, flops=1.0, peak=0.0), TrackerValueError, "above 0"),
        (lambda run: run.rate("loss", 1), TrackerValueError, "'loss'.* was logged with"),
        (lambda run: run.rate("other", 1, flops=1.0, peak=1.0), TrackerValueError, "mfu is that of 'first'"),
        (lambda run: compiled(run)(torch.ones(2)), TrackerValueError, "compiled"),
    ],
)
def test_what_is_no_rate_is_refused(recorded, call, error, words):
    with recorded().open() as run:
        run.scalar("loss", 1.0)
        run.rate("first", 1, flops=1.0, peak=1.0)
        with pytest.raises(error, match=words):
            call(run)


def test_a_rate_that_was_refused_leaves_mfu_to_the_next(recorded):
    with recorded().open() as run:
        run.scalar("loss", 1.0)
        with pytest.raises(TrackerValueError, match="'loss'"):
            run.rate("loss", 1, flops=1.0, peak=1.0)
        run.rate("tokens", 1, flops=1.0, peak=1.0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_units_are_counted_once_by_a_forward_that_runs_again_and_never_by_one_for_show(recorded, reentrant):
    tracker = recorded()
    with tracker.open() as run:

        def forward(inputs):
            run.rate("tokens", 5)
            run.rate("tokens", inputs.detach().sum())
            return inputs * inputs

        checkpoint(forward, torch.ones(3, requires_grad=True), use_reentrant=reentrant).sum().backward()
        with FakeTensorMode():
            forward(torch.ones(3))
    assert tracker.run.points("tokens") == {0: 8.0}
