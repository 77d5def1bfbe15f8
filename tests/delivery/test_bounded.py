"""A wait ends, whatever the disk does, and without a thread to wait on."""

import threading

import pytest

from d9d_tracker.delivery import bounded as module
from d9d_tracker.delivery.bounded import bounded


def test_what_hangs_is_left_alone_and_said(monkeypatch, caplog):
    monkeypatch.setattr(module, "_DISK_SECONDS", 0.05)
    released, left = threading.Event(), threading.Event()

    def wait(answer):
        released.wait()
        left.set()
        return answer

    assert bounded(0, "otherwise", wait, "answer") == "otherwise"
    assert "the disk of the backlog has hung for 0.05 s" in caplog.text
    released.set()
    assert left.wait(10)
    assert bounded(10, "otherwise", wait, "answer") == "answer"


def test_what_it_raises_is_raised_at_once_and_no_disk_is_blamed(caplog):
    def ask():
        raise ValueError("a backend's own fault")

    with pytest.raises(ValueError, match="own fault"):
        bounded(0, None, ask)
    assert not caplog.text


def test_where_no_thread_can_be_started_the_caller_waits(monkeypatch):
    def start(thread):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert bounded(0, 0, threading.get_ident) == threading.get_ident()
