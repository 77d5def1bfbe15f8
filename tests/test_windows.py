"""Windows, copies and ways out: when values travel and what is written whatever happens."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.mark.parametrize("steps", [1, 9, 10, 11, 40])
def test_n_steps_take_one_copy(recorded, steps):
    tracker = recorded(sync_every=10)
    with tracker.open() as run:
        for step in range(steps):
            run.set_step(step)
            run.scalar("loss", torch.tensor(float(step)))
            run.bins("values", torch.ones(4))
        run.set_step(steps)
        assert tracker.tracker.copies == steps // 10
    assert tracker.tracker.copies == steps // 10 + 1  # the partial window, on leaving
    assert len(tracker.run.points("loss")) == steps


class HostReads(TorchDispatchMode):
    """Counts the operators that bring a value to the host."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_logging_and_stepping_read_no_tensor_on_the_host(recorded):
    tracker = recorded(sync_every=3)
    loss, values = torch.tensor(1.0), torch.ones(8)
    with tracker.open() as run, HostReads() as reads:
        for step in range(10):
            run.set_step(step)
            run.scalar("loss", loss)
            run.scalars({"a": loss, "b": 0.1}, weight=loss)
            run.bins("values", values, every=2)
        assert reads.count == 0
        loss.item()
        assert reads.count == 1  # the counter counts


def test_flush_delivers_everything_logged_so_far(recorded):
    tracker = recorded(sync_every=10)
    with tracker.open() as run:
        for step in range(3):
            run.set_step(step)
            run.scalar("loss", step)
            run.bins("values", torch.ones(2))
        run.flush()
        assert tracker.run.points("loss") == {0: 0.0, 1: 1.0, 2: 2.0}
        assert tracker.run.histograms("values")[2].count == 6
        flushes = tracker.run.flushes
        assert flushes > 0
        run.set_step(3)
        run.scalar("loss", 3.0)
    assert tracker.run.points("loss") == {0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0}
    assert list(tracker.run.histograms("values")) == [2]


def test_what_is_logged_after_a_flush_merges_with_the_point_of_the_same_step(recorded):
    tracker = recorded()
    with tracker.open() as run:
        run.set_step(7)
        run.scalar("mean", 1.0)
        run.scalar("last", 1.0, reduce="last")
        run.scalar("untouched", 5.0)
        run.bins("values", torch.tensor([1.0, 2.0]))
        run.flush()
        run.scalar("mean", 2.0)
        run.flush()
        run.scalar("mean", 6.0)
        run.scalar("last", 9.0, reduce="last")
        run.bins("values", torch.tensor([3.0]))
    assert tracker.run.points("mean") == {7: 3.0}
    assert tracker.run.points("last") == {7: 9.0}
    assert [r.value for r in tracker.run.records if r.name == "untouched"] == [5.0]
    histogram = tracker.run.histograms("values")[7]
    assert (histogram.count, histogram.min, histogram.max, histogram.sum) == (3, 1.0, 3.0, 6.0)


def test_leaving_by_an_exception_writes_what_was_logged_and_raises_the_original(recorded):
    tracker = recorded()

    def loop():
        with tracker.open() as run:
            run.set_step(2)
            run.scalar("loss", 1.5)
            raise ZeroDivisionError("the loop")

    with pytest.raises(ZeroDivisionError, match="the loop"):
        loop()
    assert tracker.run.points("loss") == {2: 1.5}


def test_each_run_starts_anew(recorded):
    tracker = recorded()
    with tracker.open("first") as run:
        run.set_step(5)
        run.set_context({"stage": "train"})
        run.scalar("loss", 1.0)
    first = tracker.run
    with tracker.open("second") as run:
        run.scalar("loss", 2.0)
    assert first is not tracker.run
    assert first.points("loss", stage="train") == {5: 1.0}
    assert tracker.run.points("loss") == {0: 2.0}
    assert [record.name for record in tracker.run.records] == ["loss"]


def test_two_trackers_open_at_once_do_not_mix(recorded):
    one, other = recorded(), recorded()
    with one.open() as run, other.open() as another:
        run.scalar("loss", 1.0)
        another.scalar("loss", 2.0)
        another.set_step(3)
        run.scalar("loss", 3.0)
    assert one.run.points("loss") == {0: 2.0}
    assert other.run.points("loss") == {0: 2.0}
