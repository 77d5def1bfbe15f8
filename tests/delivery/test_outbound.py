"""What is on its way to a backend: in order, counted in bytes, and out of memory once it is on disk."""

import threading

import pytest

from d9d_tracker.delivery import outbound as outbound_module
from d9d_tracker.delivery.backlog import Backlog
from d9d_tracker.delivery.outbound import Call, Outbound, Queued, in_words
from d9d_tracker.delivery.report import DeliveryReport
from d9d_tracker.points import Contents, Points
from d9d_tracker.record import Record


def window(first, names=("a", "b")):
    return Points.of([Record(name, first, {}, 1.0) for name in names])


def append(outbound, points, first):
    outbound.append(points, Contents.of(points, first))


@pytest.fixture
def report():
    return DeliveryReport()


@pytest.fixture
def outbound(tmp_path, report):
    return Outbound(Backlog(tmp_path, "run", 10**6), report)


def take(queued):
    queued.accepted = queued.contents.records
    return queued


def test_memory_is_that_of_the_windows_that_are_in_it(outbound):
    for first in range(3):
        append(outbound, window(first), first)
    outbound.append_call(Call(print))
    assert outbound.memory == 3 * window(0).nbytes
    outbound.keep()  # but for the one that is being delivered
    assert outbound.memory == window(0).nbytes
    assert [queued.points is None for queued in outbound.windows] == [False, True, True]
    while outbound.items:
        outbound.remove(outbound.items[0])
    assert outbound.memory == 0


def test_what_was_dropped_takes_no_memory_and_is_removed_once(tmp_path, report):
    outbound = Outbound(Backlog(tmp_path, "run", len(window(0).dump())), report)
    append(outbound, window(0), 0)
    head = outbound.items[0]
    append(outbound, window(1), 1)
    outbound.keep()
    assert (report.dropped, [queued.number for queued in outbound.windows]) == (2, [1])
    outbound.remove(take(head))  # the backend has taken it meanwhile
    assert (report.delivered, outbound.memory) == (0, window(1).nbytes)


def test_windows_and_calls_keep_their_order(outbound):
    order = [window(0), Call(print), window(1), Call(print), Call(print)]
    for item in order:
        if isinstance(item, Call):
            outbound.append_call(item)
        else:
            append(outbound, item, item.first)
    found = []
    while outbound.items:
        head = outbound.items[0]
        found.append(head.points if isinstance(head, Queued) else head)
        outbound.remove(head)
    assert found == order


def test_what_was_refused_is_not_delivered(outbound, report):
    append(outbound, window(0), 0)
    queued = take(outbound.items[0])
    queued.refused["b"] += 1
    outbound.remove(queued)
    assert (report.delivered, report.refused) == (1, {"b": 1})


def test_what_an_earlier_process_kept_comes_first(tmp_path, report):
    before = Outbound(Backlog(tmp_path, "run", 10**6), report)
    append(before, window(3), 3)
    before.keep()
    before._backlog.close()
    outbound = Outbound(Backlog(tmp_path, "run", 10**6), report)
    append(outbound, window(7), 7)
    assert [(queued.number, queued.contents.first) for queued in outbound.windows] == [(0, 3), (1, 7)]
    assert [queued.points is None for queued in outbound.windows] == [True, False]


def test_in_words(outbound):
    assert in_words([]) == "nothing"
    append(outbound, window(3), 3)
    append(outbound, window(5, tuple(f"s{number:02}" for number in range(12))), 5)
    words = in_words(outbound.windows, calls=1)
    assert words.startswith("14 records of steps 3 to 5 (a, b, s00, ")
    assert words.endswith("and 4 more series) and 1 call of run.backend")
    assert in_words([], calls=2) == "2 calls of run.backend"


@pytest.fixture
def full(outbound, monkeypatch):
    """A disk that is full as long as it is set."""
    is_full, connect = threading.Event(), outbound._backlog._open

    def refuse():
        if is_full.is_set():
            raise OSError(28, "No space left on device")
        return connect()

    monkeypatch.setattr(outbound._backlog, "_open", refuse)
    return is_full


def test_what_no_disk_takes_is_bounded_in_memory(outbound, full, report, caplog):
    full.set()
    outbound._backlog.max_bytes = 3 * window(0).nbytes
    for first in range(100):
        append(outbound, window(first), first)
        outbound.keep()
    assert outbound.memory == 3 * window(0).nbytes
    assert [queued.contents.first for queued in outbound.windows] == [97, 98, 99]
    assert report.dropped == 2 * 97
    assert caplog.text.count("the backlog cannot be written") == 1
    full.clear()
    outbound._backlog.max_bytes = 10**6
    outbound.keep()
    assert len(outbound._backlog.contents()) == 3


def test_what_a_full_disk_could_not_forget_is_forgotten_later(outbound, full, report, caplog):
    """Else the next life takes the backend back to it, and all that came behind with it."""
    for first in range(2):
        append(outbound, window(first), first)
    outbound.keep()
    full.set()
    outbound.remove(take(outbound.items[0]))
    assert report.delivered == 2
    assert "the backlog cannot be written" in caplog.text
    append(outbound, window(2), 2)  # in memory alone
    outbound.remove(take(outbound.items[0]))
    full.clear()
    assert len(outbound._backlog.contents()) == 2
    outbound.remove(take(outbound.items[0]))
    assert outbound._backlog.contents() == {}


def test_a_file_of_which_nothing_waits_is_removed_though_the_disk_is_full(outbound, full):
    append(outbound, window(0), 0)
    outbound.keep()
    full.set()
    outbound.remove(take(outbound.items[0]))
    outbound._backlog.close()
    assert not outbound._backlog.path.exists()


def test_calls_that_wait_for_ever_are_bounded(outbound, monkeypatch, caplog):
    """They may hold pictures."""
    monkeypatch.setattr(outbound_module, "_MOST_CALLS", 3)
    calls = [Call(print) for _ in range(10)]
    calls[0].set_running_or_notify_cancel()
    for first, call in enumerate(calls):
        append(outbound, window(first), first)
        outbound.append_call(call)
    assert outbound.calls == [calls[0], *calls[-2:]]
    assert all(call.cancelled() for call in calls[1:-2])
    assert len(outbound.windows) == 10
    assert caplog.text.count("calls of run.backend wait") == 1
