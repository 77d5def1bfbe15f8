"""What a backend accepts arrives once and in order; what it does not is kept, counted and named, whatever it does."""

import contextlib
import logging
import sqlite3
import threading
from collections import Counter
from dataclasses import replace

import pytest

from d9d_tracker import RunConfig
from d9d_tracker.delivery import delivery as delivery_module
from d9d_tracker.delivery.backlog import Backlog
from d9d_tracker.delivery.delivery import Delivery
from d9d_tracker.delivery.outbound import Call
from d9d_tracker.points import Contents, Points
from d9d_tracker.record import Record
from d9d_tracker.sink import LoopSink, RecordRun, Sink, SinkLostError, Taken
from d9d_tracker.testing import RecordingRun


class Backend(RecordingRun):
    """A recording backend that can be told to fail, to refuse, or to hang."""

    def __init__(self):
        super().__init__(RunConfig(name="run"))
        self.down: BaseException | None = None
        self.failing = 0
        self.refused: dict[str, Exception] = {}
        self.released = threading.Event()
        self.released.set()
        self.inside = threading.Event()
        self.tried = threading.Semaphore(0)

    def set_step(self, step):
        assert step >= self._step, "steps never go back"
        super().set_step(step)

    def scalar(self, name, value, context=None):
        self.inside.set()
        self.released.wait()
        self.tried.release()
        if self.down is not None:
            raise self.down
        if self.failing:
            self.failing -= 1
            raise ConnectionError("a moment")
        if name in self.refused:
            raise self.refused[name]
        super().scalar(name, value, context)

    def points_in_order(self):
        return [(r.name, r.step) for r in self.records]

    def points_sorted(self):
        """Steps never go back, see `set_step`; of one step, a point may have come first that told a fault's cause."""
        return sorted(self.points_in_order(), key=lambda point: (point[1], point[0]))


def window(index, names=("a", "b"), steps=2):
    records = [Record(name, 10 * index + step, {}, 1.0) for step in range(steps) for name in names]
    points = Points.of(records)
    return points, Contents.of(points, 10 * index)


def expected(*windows, names=("a", "b"), without=()):
    return [(r.name, r.step) for w in windows for r in window(w, names)[0] if r.name not in without]


def call_of(delivery, action):
    call = Call(action)
    delivery.put_call(call)
    return call


def over(run, backlog, patience, **options):
    return Delivery("recording", lambda: contextlib.nullcontext(LoopSink(run)), backlog, patience, **options)


@pytest.fixture
def backend():
    backend = Backend()
    yield backend
    backend.released.set()


@pytest.fixture
def delivery(backend, tmp_path):
    delivery = over(backend, Backlog(tmp_path, "run", 10**6), patience=30.0)
    yield delivery
    backend.released.set()
    backend.down = None
    delivery.close(10)


def test_windows_arrive_in_order_each_with_one_flush(delivery, backend, tmp_path):
    for index in range(5):
        delivery.put(*window(index))
    assert delivery.flush(10)
    assert backend.points_in_order() == expected(*range(5))
    assert backend.flushes == 5
    assert delivery.report.delivered == 20
    assert delivery.report.failures == 0
    assert list(tmp_path.iterdir()) == []


def test_a_held_backend_holds_nobody(delivery, backend, caplog):
    backend.released.clear()
    for index in range(100):
        delivery.put(*window(index))
    assert not delivery.flush(0.01)
    assert "flush: not with the backend" in caplog.text
    backend.released.set()
    assert delivery.flush(10)
    assert backend.points_in_order() == expected(*range(100))


def with_hparams(index, names=("a", "b")):
    points, first = window(index, names)
    return replace(points, hparams={"lr": 0.1}), first


def test_hyperparameters_that_are_raised_on_for_ever_hold_up_nothing(delivery, backend, monkeypatch, caplog):
    def add_hparams(hparams):
        raise KeyError("its own mistake")

    monkeypatch.setattr(backend, "add_hparams", add_hparams)
    delivery.put(*with_hparams(0))
    delivery.put(*with_hparams(1))
    assert delivery.flush(10)
    assert backend.points_in_order() == expected(0, 1)
    assert caplog.text.count("hyperparameters that were added later did not reach recording: KeyError") == 1


@pytest.mark.parametrize("names", [("a", "b"), ()])
def test_hyperparameters_that_an_outage_keeps_off_come_when_it_is_over(names, delivery, backend, monkeypatch):
    tries, add_hparams = [], backend.add_hparams

    def fail_at_first(hparams):
        tries.append(hparams)
        if len(tries) < 20:
            raise (KeyError if len(tries) < 4 else ConnectionError)("no route to host")
        add_hparams(hparams)

    monkeypatch.setattr(backend, "add_hparams", fail_at_first)
    delivery.put(*with_hparams(0, names))
    delivery.put(*window(1))
    assert delivery.flush(10)
    assert backend.points_in_order() == expected(0, names=names) + expected(1)
    assert tries == [{"lr": 0.1}] * 20


@pytest.mark.parametrize("times", [1, 2, 3, 4, 5, 6, 7, 20])
def test_raising_some_times_loses_and_doubles_nothing(times, delivery, backend):
    backend.failing = times
    for index in range(4):
        delivery.put(*window(index))
    assert delivery.flush(10)
    assert sorted(backend.points_in_order()) == sorted(expected(*range(4)))
    assert not delivery.report.refused
    assert 0 < delivery.report.failures <= times


def test_an_outage_is_said_once_counted_and_kept_on_disk(delivery, backend, tmp_path, caplog):
    backend.down = ConnectionError("no route to host")
    for index in range(3):
        delivery.put(*window(index))
    for _ in range(10):
        assert backend.tried.acquire(timeout=10)
    assert delivery.settle(10) == [0, 1, 2]
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(said) == 1
    assert "no route to host" in said[0]
    assert "a, b" in said[0]
    assert delivery.report.failures > 1
    backend.down = None
    assert delivery.flush(10)
    assert backend.points_sorted() == expected(0, 1, 2)
    assert "the backend is back" in caplog.text
    assert delivery.close(10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError("too long"), TypeError("not this"), RuntimeError("boom")])
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_series_refused_for_ever_is_named_and_the_others_arrive(name, error, delivery, backend, caplog):
    backend.refused[name] = error
    for index in range(3):
        delivery.put(*window(index, "abc"))
    assert delivery.flush(10)
    found = backend.points_in_order()
    assert set(found) == set(expected(0, 1, 2, names="abc", without=name))
    if isinstance(error, ValueError | TypeError):
        assert len(found) == len(set(found))
    assert delivery.report.refused == Counter({name: 6})
    assert f"refused {name} at step 0" in caplog.text
    assert str(error) in caplog.text
    assert delivery.report.delivered == 12


def test_two_series_refused_in_one_step(delivery, backend):
    backend.refused = {"b": RuntimeError("boom"), "c": RuntimeError("boom")}
    delivery.put(*window(0, "abc"))
    assert delivery.flush(10)
    assert delivery.report.refused == Counter({"b": 2, "c": 2})


def test_a_flush_that_fails_does_not_write_again(delivery, backend, monkeypatch):
    failures = iter([OSError("full"), OSError("full")])

    def flush():
        if (error := next(failures, None)) is not None:
            raise error

    monkeypatch.setattr(backend, "flush", flush)
    delivery.put(*window(0))
    assert delivery.flush(10)
    assert backend.points_in_order() == expected(0)
    assert delivery.report.failures == 2


def test_a_backend_that_exits_its_thread_is_only_failing(delivery, backend):
    backend.down = SystemExit("rude")
    delivery.put(*window(0))
    assert backend.tried.acquire(timeout=10)
    backend.down = None
    assert delivery.flush(10)


def test_settling_puts_on_disk_what_a_held_backend_has_not_taken(delivery, backend, tmp_path):
    backend.released.clear()
    delivery.put(*window(0))
    delivery.put(*window(1))
    assert backend.inside.wait(10)
    assert delivery.settle(0.01) == [0, 1]
    assert len(list(tmp_path.glob("*.sqlite3"))) == 1


def test_a_hanging_backend_counts_as_down(backend, tmp_path, caplog):
    delivery = over(backend, Backlog(tmp_path, "run", 10**6), patience=0.0)
    backend.released.clear()
    delivery.put(*window(0))
    assert backend.inside.wait(10)
    delivery.put(*window(1))
    assert delivery.kept() == [0, 1]
    assert "has not returned" in caplog.text
    assert delivery.report.failures == 1
    backend.released.set()
    assert delivery.flush(10)
    assert backend.points_in_order() == expected(0, 1)
    assert delivery.close(10)


def test_closing_a_hanging_backend_is_bounded_and_the_next_process_delivers(backend, tmp_path, caplog):
    delivery = over(backend, Backlog(tmp_path, "run", 10**6), patience=30.0)
    backend.released.clear()
    for index in range(3):
        delivery.put(*window(index))
    assert backend.inside.wait(10)
    assert not delivery.close(0.05)
    assert delivery.report.undelivered == 12
    assert "not delivered: 12 records of steps 0 to 21 (a, b)" in caplog.text
    backend.released.set()
    delivery._thread.join(30)
    assert backend.points_in_order() == [("a", 0)]  # what it was inside of; nothing after

    delivery.backlog.close()  # as the death of the process would
    again = Backend()
    successor = over(again, Backlog(tmp_path, "run", 10**6), patience=30.0)
    assert successor.flush(10)
    assert again.points_in_order() == expected(0, 1, 2)
    assert successor.close(10)
    assert list(tmp_path.iterdir()) == []


def test_a_window_that_was_half_delivered_is_kept_whole(backend, tmp_path):
    delivery = over(backend, Backlog(tmp_path, "run", 10**6), patience=30.0)
    written = []

    def scalar(name, value, context=None):
        if len(written) == 3:
            raise ConnectionError("gone")
        written.append(name)
        backend.tried.release()

    backend.scalar = scalar
    delivery.put(*window(0))
    for _ in range(3):
        assert backend.tried.acquire(timeout=10)
    assert delivery.close(0.05)
    backlog = Backlog(tmp_path, "run", 10**6)
    assert [(r.name, r.step) for r in backlog.get(0)] == expected(0)


def test_the_bound_drops_the_oldest_loudly(backend, tmp_path, caplog):
    delivery = over(backend, Backlog(tmp_path, "run", 600), patience=30.0)
    backend.down = ConnectionError("gone")
    for index in range(10):
        delivery.put(*window(index))
        delivery.settle(0)
    kept = delivery.kept()
    assert kept == list(range(10))[-len(kept) :]
    assert delivery.report.dropped == 4 * (10 - len(kept)) > 0
    assert "the backlog is full, dropped: 4 records of steps 0 to 1 (a, b)" in caplog.text
    backend.down = None
    assert delivery.flush(10)
    assert delivery.report.delivered == 4 * len(kept)
    assert delivery.close(10)


def test_with_the_disk_full_as_well_memory_holds_what_is_left(backend, tmp_path, caplog, monkeypatch):
    backlog = Backlog(tmp_path, "run", 10**6)
    delivery = over(backend, backlog, patience=30.0)
    full = OSError(28, "No space left on device")

    def fail(*_):
        raise full

    monkeypatch.setattr(backlog, "put", fail)
    backend.down = ConnectionError("gone")
    for index in range(3):
        delivery.put(*window(index))
    assert delivery.settle(0.01) == []
    assert "No space left on device" in caplog.text
    assert "neither with the backend nor on disk" in caplog.text
    backend.down = None
    assert delivery.flush(10)
    assert backend.points_sorted() == expected(0, 1, 2)
    assert delivery.close(10)


def test_a_backend_slower_than_the_training_waits_on_disk_not_in_memory(backend, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(delivery_module, "MEMORY_BYTES", 20 * window(0)[0].nbytes)
    delivery = over(backend, Backlog(tmp_path, "run", 10**8), patience=1000.0)
    backend.released.clear()
    most = 0
    for index in range(500):
        delivery.put(*window(index))
        most = max(most, sum(queued.points is not None for queued in delivery._queue.windows))
    assert most <= 22
    assert delivery._queue.memory <= delivery_module.MEMORY_BYTES
    assert caplog.text.count("is slower than the training") == 1
    assert "the backend failed" not in caplog.text
    backend.released.set()
    assert delivery.flush(60)
    assert backend.points_in_order() == expected(*range(500))
    assert delivery.report.failures == 0
    assert delivery.close(10)
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_cannot_be_amended_is_held_until_it_has_ended(backend, tmp_path):
    delivery = over(backend, Backlog(tmp_path, "run", 10**6), patience=30.0, amends=False)

    def put(values, unfinished=None):
        records = [Record(name, step, {}, value) for (name, step), value in values.items()]
        points, first = Points.of(records), min((step for _, step in values), default=0)
        delivery.put(points, Contents.of(points, first), unfinished)
        assert delivery.flush(10)
        return [(record.name, record.step, record.value) for record in backend.records]

    first = [("a", 0, 1.0)]
    assert put({("a", 0): 1.0, ("a", 1): 2.0, ("b", 1): 3.0}, unfinished=1) == first
    assert put({("a", 1): 5.0, ("c", 1): 6.0}, unfinished=1) == first
    ended = [*first, ("a", 1, 5.0), ("b", 1, 3.0), ("c", 1, 6.0)]
    assert put({("a", 2): 7.0}, unfinished=2) == ended
    assert put({}) == [*ended, ("a", 2, 7.0)]
    assert delivery.report.delivered == 5
    assert delivery.close(10)


def test_a_step_that_is_held_back_is_not_lost_where_its_end_never_comes(backend, tmp_path):
    delivery = over(backend, Backlog(tmp_path, "run", 10**6), patience=30.0, amends=False)
    delivery.put(*window(0, steps=1), unfinished=0)
    assert delivery.flush(10)
    assert backend.records == []
    assert delivery.close(10)  # the device hangs, for one
    assert backend.points_in_order() == expected(0)[:2]


def test_a_backend_is_called_by_one_thread_from_open_to_close(tmp_path):
    threads = []

    class Noting(RecordingRun):
        def scalar(self, name, value, context=None):
            threads.append(threading.current_thread())

        flush = rewind = lambda self, *_: threads.append(threading.current_thread())

    @contextlib.contextmanager
    def open_run():
        threads.append(threading.current_thread())
        yield LoopSink(Noting(RunConfig(name="run")))
        threads.append(threading.current_thread())

    delivery = Delivery("noting", open_run, Backlog(tmp_path, "run", 10**6), 30.0, rewind_to=0)
    delivery.put(*window(0))
    call_of(delivery, lambda run: threads.append(threading.current_thread())).result(10)
    assert delivery.close(10)
    assert len(threads) >= 9
    assert set(threads) == {delivery._thread}


def test_a_backend_that_hangs_while_it_opens_is_one_that_is_down(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(delivery_module, "OPEN_SECONDS", 0.0)
    released, backend = threading.Event(), Backend()

    @contextlib.contextmanager
    def open_run():
        released.wait()
        yield LoopSink(backend)

    delivery = Delivery("late", open_run, Backlog(tmp_path, "run", 10**6), 0.0)
    delivery.put(*window(0))
    assert delivery.kept() == [0]
    released.set()
    assert delivery.flush(10)
    assert backend.points_in_order() == expected(0)
    assert "the backend is back" in caplog.text
    assert delivery.close(10)


def test_an_opening_that_ends_by_a_timeout_of_its_own_has_failed_and_is_not_awaited(tmp_path, caplog):
    @contextlib.contextmanager
    def open_run():
        raise TimeoutError("no answer")
        yield

    delivery = Delivery("mute", open_run, Backlog(tmp_path, "run", 10**6), 30.0)
    delivery.wait_until_open(10)
    assert "the backend failed: TimeoutError('no answer')" in caplog.text
    assert "has not opened the run" not in caplog.text
    assert delivery.close(0)


def test_a_rewind_that_fails_is_tried_again_on_the_same_run(tmp_path):
    opened, failures = [], iter([ConnectionError("a moment"), ConnectionError("a moment")])

    class Rewinding(Backend):
        def rewind(self, step):
            opened.append(("rewind", step))
            if (error := next(failures, None)) is not None:
                raise error

    @contextlib.contextmanager
    def open_run():
        opened.append("open")
        yield LoopSink(backend)

    backend = Rewinding()
    delivery = Delivery("rewinding", open_run, Backlog(tmp_path, "run", 10**6), 30.0, rewind_to=5)
    delivery.put(*window(1))
    assert delivery.flush(10)
    assert opened == ["open", *[("rewind", 5)] * 3]
    assert delivery.close(10)


class Partly(Sink):
    """Takes as many points as it is told to and is down then; what was not flushed can be lost."""

    def __init__(self, *takes):
        self.takes = list(takes)
        self.asked = []
        self.stored, self.pending = [], []
        self.rewound = []
        self.lost_in: str | None = None

    def write_points(self, points):
        names = [record.name for record in points]
        self.asked.append("".join(names))
        taken = self.takes.pop(0) if self.takes else len(names)
        self.pending += names[:taken]
        return Taken(taken, failures=1, error=ConnectionError("down")) if taken < len(names) else Taken(taken)

    def flush(self):
        self._lose("flush")
        self.stored, self.pending = [*self.stored, *self.pending], []

    def rewind(self, step):
        self._lose("rewind")
        self.rewound.append(step)

    def _lose(self, moment):
        if self.lost_in == moment:
            self.lost_in, self.pending = None, []
            raise SinkLostError("gone")


def over_sink(sink, tmp_path, **options):
    return Delivery("partly", lambda: contextlib.nullcontext(sink), Backlog(tmp_path, "run", 10**6), 30.0, **options)


def test_what_was_taken_before_a_failure_is_not_sent_again(tmp_path):
    sink = Partly(2, 1)
    delivery = over_sink(sink, tmp_path)
    delivery.put(*window(0, "abcde", steps=1))
    assert delivery.flush(10)
    assert sink.asked == ["abcde", "cde", "de"]
    assert sink.stored == list("abcde")
    assert (delivery.report.delivered, delivery.report.failures) == (5, 2)
    assert delivery.close(10)


def test_a_sink_that_is_lost_is_opened_again_and_gets_its_window_whole(tmp_path):
    sink = Partly()
    delivery = over_sink(sink, tmp_path)
    delivery.put(*window(0, "ab", steps=1))
    assert delivery.flush(10)
    sink.takes, sink.lost_in = [3], "flush"
    delivery.put(*window(1, "abcde", steps=1))
    assert delivery.flush(10)
    assert sink.asked == ["ab", "abcde", "de", "abcde"]
    assert sink.stored == list("ababcde")
    assert sink.rewound == [10]
    assert delivery.report.delivered == 7
    assert delivery.close(10)


def test_a_sink_that_is_lost_while_it_is_taken_back_is_taken_back_as_far(tmp_path):
    sink = Partly()
    sink.lost_in = "rewind"
    released = threading.Event()

    @contextlib.contextmanager
    def open_run():
        released.wait(10)
        yield sink

    delivery = Delivery("partly", open_run, Backlog(tmp_path, "run", 10**6), 30.0, rewind_to=5)
    delivery.put(*window(1))  # nothing was logged at once: its first step is 10
    released.set()
    assert delivery.flush(10)
    assert sink.rewound == [5]
    assert delivery.close(10)


class Noting(RecordRun):
    """Notes records, and stores them when it is flushed; some it cannot even note, always or while it is down."""

    def __init__(self, *faulty, error=RuntimeError):
        super().__init__("run")
        self.faulty, self.is_down, self.error = faulty, False, error
        self.noted, self.stored = [], []
        self.tried = threading.Semaphore(0)

    def write_record(self, record):
        self.tried.release()
        if record.name in self.faulty or (record.name == "b" and self.is_down):
            raise self.error("boom")
        self.noted.append((record.name, record.step))

    def sync(self):
        if self.is_down:
            raise ConnectionError("gone")
        self.stored, self.noted = [*self.stored, *self.noted], []


def test_a_record_that_is_alone_in_its_step_is_told_from_a_backend_that_is_down(tmp_path, caplog):
    sink = Noting("b")
    delivery = over_sink(sink, tmp_path)
    for index, name in enumerate("abba"):
        delivery.put(*window(index, name, steps=1))
    assert delivery.flush(10)
    assert set(sink.stored) == {("a", 0), ("a", 30)}
    assert delivery.report.refused == Counter(b=2)
    assert "refused b at step 10" in caplog.text
    assert delivery.close(10)


def test_while_nothing_becomes_durable_no_record_is_at_fault(tmp_path):
    sink = Noting()
    delivery = over_sink(sink, tmp_path)
    delivery.put(*window(0, "a", steps=1))
    assert delivery.flush(10)
    sink.is_down = True
    delivery.put(*window(1, "b", steps=1))
    for _ in range(20):
        assert sink.tried.acquire(timeout=10)
    sink.is_down = False
    assert delivery.flush(10)
    assert set(sink.stored) == {("a", 0), ("b", 10)}
    assert not delivery.report.refused
    assert delivery.close(10)


@pytest.mark.parametrize("error", [OSError, TimeoutError, sqlite3.OperationalError])
def test_what_a_full_disk_may_raise_says_nothing_of_a_record_that_is_alone(error):
    sink = Noting("b", error=error)
    sink.write_points(window(0, "a", steps=1)[0])
    taken = sink.write_points(window(1, "b", steps=1)[0])
    assert isinstance(taken.error, error)
    assert not taken.refused


def test_what_was_taken_back_is_not_written_again_to_tell_a_fault():
    sink = Noting("b")
    sink.write_points(window(1, "a", steps=1)[0])
    sink.rewind(5)
    assert isinstance(sink.write_points(Points.of([Record("b", 5, {}, 1.0)])).error, RuntimeError)
    assert sink.noted == [("a", 10)]  # once


def test_a_window_that_is_damaged_in_the_backlog_is_named_and_left_out(delivery, backend, tmp_path, caplog):
    backend.down = ConnectionError("gone")
    for index in range(3):
        delivery.put(*window(index))
    assert delivery.settle(10) == [0, 1, 2]
    with delivery.backlog._lock, delivery.backlog._open() as database:
        database.execute("UPDATE windows SET payload = x'00' WHERE window = 1")
    backend.down = None
    assert delivery.flush(10)
    assert backend.points_sorted() == expected(0, 2)
    assert (delivery.report.delivered, delivery.report.dropped) == (8, 4)
    assert "left out: 4 records of steps 10 to 11 (a, b); window 1 of" in caplog.text
    assert (tmp_path / "run.1.damaged").read_bytes() == b"\x00"


@pytest.mark.parametrize("fails_again", [False, True])
def test_a_backend_that_is_back_while_it_is_closed_is_tried(fails_again, backend, tmp_path, monkeypatch):
    for pause in ("_FIRST_RETRY_SECONDS", "_LAST_RETRY_SECONDS"):
        monkeypatch.setattr(delivery_module, pause, 1000.0)  # for which nobody waits who closes
    delivery = over(backend, Backlog(tmp_path, "run", 10**6), patience=30.0)
    backend.down = ConnectionError("gone")
    delivery.put(*window(0))
    delivery.settle(10)
    if fails_again:
        delivery.begin_close()
        with delivery._changed:
            assert delivery._changed.wait_for(lambda: delivery.report.failures > 1, 10)
    backend.down = None
    assert delivery.close(10)
    assert delivery.report.undelivered == 0
    assert backend.points_sorted() == expected(0)


def test_a_call_waits_its_turn_and_flush_waits_for_it(delivery, backend, caplog, monkeypatch):
    begun, go = threading.Event(), threading.Event()

    def action(run):
        begun.set()
        go.wait(30)
        return len(backend.records)

    delivery.put(*window(0))
    call = call_of(delivery, action)
    assert begun.wait(10)
    assert not delivery.flush(0)
    assert "1 call of run.backend" in caplog.text
    wait = delivery._changed.wait_for
    monkeypatch.setattr(delivery._changed, "wait_for", lambda *arguments: go.set() or wait(*arguments))
    assert delivery.flush(10)
    assert call.result(10) == 4


def test_a_call_that_is_cancelled_or_exits_is_skipped(delivery, backend):
    made = []

    def leave(run):
        made.append("leave")
        raise SystemExit(3)

    backend.released.clear()
    delivery.put(*window(0))
    cancelled, exiting = call_of(delivery, lambda run: made.append("cancelled")), call_of(delivery, leave)
    delivery.put(*window(1))
    assert cancelled.cancel()
    backend.released.set()
    assert delivery.flush(10)
    assert made == ["leave"]
    assert isinstance(exiting.exception(10), SystemExit)
    assert backend.points_in_order() == expected(0, 1)
    assert (delivery.report.failures, delivery.cause) == (0, None)


def test_calls_behind_a_window_are_made_before_the_backend_is_closed(delivery, backend):
    turns = threading.Semaphore(0)
    backend.released.clear()
    delivery.put(*window(0))
    calls = [call_of(delivery, lambda run: turns.acquire(timeout=10)) for _ in range(3)]
    closing = threading.Thread(target=delivery.close, args=(10,))
    closing.start()
    backend.released.set()
    for call in calls:
        turns.release()
        assert call.result(10)
    closing.join()


def test_calls_behind_a_hang_are_cancelled_at_the_end(delivery, backend):
    backend.released.clear()
    delivery.put(*window(0))
    call = call_of(delivery, lambda run: None)
    assert backend.inside.wait(10)
    assert not delivery.close(0.05)
    assert call.cancelled()
    assert call_of(delivery, lambda run: None).cancelled()


def test_a_backend_that_stays_slow_is_said_to_be_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(delivery_module, "MEMORY_BYTES", 10 * window(0)[0].nbytes)
    turns = threading.Semaphore(0)

    class Slow(Sink):
        def write_points(self, points):
            turns.acquire()
            return Taken(len(points))

    delivery = over_sink(Slow(), tmp_path)
    for index in range(50):
        delivery.put(*window(index))
    turns.release(20)
    with delivery._changed:
        assert delivery._changed.wait_for(lambda: len(delivery._queue.items) <= 30, 10)
    for index in range(50, 100):
        delivery.put(*window(index))
    assert caplog.text.count("is slower than the training") == 1
    turns.release(80)
    assert delivery.flush(10)
    for index in range(100, 150):
        delivery.put(*window(index))
    assert caplog.text.count("is slower than the training") == 2
    turns.release(50)
    assert delivery.close(10)


def test_what_opens_slowly_is_no_failure(tmp_path):
    released = threading.Event()

    @contextlib.contextmanager
    def open_run():
        released.wait(10)
        yield LoopSink(Backend())

    delivery = Delivery("late", open_run, Backlog(tmp_path, "run", 10**6), 0.0)
    delivery.put(*window(0))
    assert delivery.kept() == []
    assert delivery.report.failures == 0
    released.set()
    assert delivery.flush(10)
    assert delivery.close(10)


def test_many_windows_are_put_on_disk_at_once_as_arrays(backend, tmp_path, monkeypatch):
    backlog = Backlog(tmp_path, "run", 10**8)
    delivery = over(backend, backlog, patience=30.0)
    backend.released.clear()
    delivery.put(*window(0))
    assert backend.inside.wait(10)
    for index in range(1, 50):
        delivery.put(*window(index))
    put, rows = backlog.put, []
    with monkeypatch.context() as patched:
        patched.setattr(Points, "__iter__", lambda points: pytest.fail("made of records"))
        patched.setattr(backlog, "put", lambda windows: rows.append(len(windows)) or put(windows))
        assert delivery.settle(0.01) == list(range(50))
    assert rows == [50]
    assert backlog._database is not None
    assert backlog._database.execute("SELECT DISTINCT typeof(payload) FROM windows").fetchall() == [("blob",)]
    backend.released.set()
    assert delivery.flush(10)
    assert delivery.close(10)
