"""A backend that opens late, or refuses late, and what is left when a run could not be opened."""

import threading
from contextlib import contextmanager
from unittest import mock

import pytest

from d9d_tracker import AccumulatingTracker, AccumulatorConfig, RunConfig
from d9d_tracker.accumulator import opening
from d9d_tracker.delivery.backlog import Backlog
from d9d_tracker.testing import RecordingTracker

NAME = RunConfig(name="run")


class Late(RecordingTracker):
    """Opens when it is let, or raises then."""

    def __init__(self):
        super().__init__()
        self.go = threading.Event()
        self.error = None
        self.closed = 0

    @contextmanager
    def open(self, properties):
        assert self.go.wait(10)
        if self.error is not None:
            raise self.error
        with super().open(properties) as run:
            try:
                yield run
            finally:
                self.closed += 1


@pytest.fixture
def backend(monkeypatch):
    monkeypatch.setattr(opening, "OPEN_SECONDS", 0.01)
    backend = Late()
    yield backend
    backend.go.set()


def over(backend, config, **changes):
    return AccumulatingTracker(backend, AccumulatorConfig(**config | changes))


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("d9d_tracker")]


def test_a_backend_that_refuses_late_is_said_once_and_waited_for_by_nobody(backend, config, caplog, monkeypatch):
    backend.error = ValueError("THE CAUSE")
    tracker = over(backend, config, flush_timeout=10.0)
    with tracker.open(NAME) as run:
        run.scalar("a", 1.0)
        (before,) = run.backend(lambda its: None).values()
        backend.go.set()
        with pytest.raises(ValueError, match="THE CAUSE"):
            before.result(10)
        (after,) = run.backend(lambda its: None).values()
        assert isinstance(after.exception(10), ValueError)
        caplog.clear()
        (delivery,) = tracker._pipeline._deliveries.values()
        monkeypatch.setattr(delivery._changed, "wait_for", lambda is_so, _: is_so() or pytest.fail("it waits"))
        run.flush()
        assert "not with the backend, ValueError('THE CAUSE')" in caplog.text
        tracker.state_dict()
    assert tracker.report.undelivered == 1
    assert tracker.report.failures == 1
    (kept,) = config["backlog_dir"].glob("*.sqlite3")
    backlog = Backlog(kept.parent, kept.stem, 10**6)
    assert [record.name for record in backlog.get(0)] == ["a"]
    backlog.close()


def test_the_cause_of_a_late_refusal_is_said_once(backend, config, caplog):
    backend.error = ValueError("THE CAUSE")
    with over(backend, config).open(NAME) as run:
        (future,) = run.backend(lambda its: None).values()
        backend.go.set()
        assert future.exception(10) is backend.error
        for step in range(20):
            run.set_step(step)
            run.scalar("a", 1.0)
    assert caplog.text.count("THE CAUSE") == 1
    assert "refuses to open the run: ValueError('THE CAUSE')" in caplog.text


def test_a_backend_that_opens_late_gets_everything(backend, config):
    tracker = over(backend, config)
    with tracker.open(NAME) as run:
        for step in range(10):
            run.set_step(step)
            run.scalar("a", step)
        (future,) = run.backend(lambda its: len(its.records)).values()
        backend.go.set()
        run.flush()
        assert future.result(10) == 8  # of the windows that were complete before
    assert backend.run.points("a") == {step: step for step in range(10)}
    assert tracker.report.failures == 0


@pytest.fixture
def no_thread_left(monkeypatch):
    """No thread can be started for a pipeline."""
    start = threading.Thread.start

    def none_left(thread):
        if thread.name == "d9d_tracker collector":
            raise RuntimeError("can't start new thread")
        start(thread)

    @contextmanager
    def now():
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", none_left)
            yield

    return now


def test_a_run_for_which_no_thread_is_left_leaves_nothing_open(backend, config, no_thread_left):
    backend.go.set()
    before, tracker = threads(), over(backend, config)
    with no_thread_left(), pytest.raises(RuntimeError, match="can't start new thread"), tracker.open(NAME):
        pytest.fail("opened")
    assert backend.closed == 1
    assert threads() == before
    with tracker.open(NAME) as run:
        run.scalar("a", 1.0)
    assert backend.run.points("a") == {0: 1.0}


def test_a_run_of_several_ranks_for_which_no_thread_is_left_leaves_them(backend, config, no_thread_left, monkeypatch):
    backend.go.set()
    ranks = mock.Mock(missing=[], held=None, taken={})
    job = mock.Mock(rank=0, open=lambda settings, action: action(), connect=lambda: ranks)
    monkeypatch.setattr(AccumulatingTracker, "_find_job", lambda tracker: job)
    with no_thread_left(), pytest.raises(RuntimeError, match="can't start new thread"):
        over(backend, config).start(NAME)
    ranks.close.assert_called_once_with()
    assert backend.closed == 1


def test_a_rank_that_does_not_write_has_no_backend_to_call(config, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with over(RecordingTracker(), config, distributed="rank0").open(NAME) as run:
        for name in (None, "0-jsonl", ""):
            assert run.backend(lambda its: None, name) == {}
