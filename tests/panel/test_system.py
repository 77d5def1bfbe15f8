"""Memory and machine: sampled once a window, the machine by the collector's thread, and nothing where it is unknown."""

import sys
import threading
from types import SimpleNamespace

import pytest

from d9d_tracker import log
from d9d_tracker.panel import system

psutil = pytest.importorskip("psutil")


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    monkeypatch.setattr(system, "_said", set())
    monkeypatch.setattr(log, "_said", set())
    monkeypatch.setattr(system, "_PAUSE_SECONDS", 0.0)


def monitored(tracker, steps=9):
    with tracker.open() as run:
        run.monitor()
        for step in range(steps):
            run.set_step(step)
    return {record.name: tracker.run.points(record.name) for record in tracker.run.records}


def test_they_are_sampled_in_the_first_step_and_at_the_end_of_each_window(recorded, monkeypatch):
    threads = set()
    used = iter(range(100, 200))
    count = SimpleNamespace(read_bytes=7, write_bytes=0, bytes_recv=0, bytes_sent=0)

    def memory():
        threads.add(threading.current_thread().name)
        return SimpleNamespace(used=next(used))

    monkeypatch.setattr(psutil, "virtual_memory", memory)
    monkeypatch.setattr(psutil, "cpu_percent", lambda: 42.0)
    monkeypatch.setattr(psutil, "disk_io_counters", lambda: count)
    monkeypatch.setattr(psutil, "net_io_counters", lambda: None)  # as a machine without a network has it
    found = monitored(recorded(sync_every=4))
    assert found["system/ram"] == {0: 100.0, 3: 101.0, 7: 102.0}
    assert found["system/cpu"] == {3: 42.0, 7: 42.0}
    assert found["system/disk/read"] == {3: 0.0, 7: 0.0}
    assert "system/network/sent" not in found
    assert threads == {"d9d_tracker collector"}
    if sys.platform == "linux":
        assert found["memory/host"].keys() == {0, 3, 7}
        assert abs(found["memory/host"][7] - psutil.Process().memory_info().rss) < 2**28


def test_counters_become_bytes_a_second(monkeypatch):
    now = iter([10.0, 14.0])
    monkeypatch.setattr(psutil, "net_io_counters", lambda: SimpleNamespace(bytes_recv=0, bytes_sent=1000))
    machine = system.System(SimpleNamespace(type="cpu"), lambda: next(now))
    assert "system/network/sent" not in machine.sample()
    monkeypatch.setattr(psutil, "net_io_counters", lambda: SimpleNamespace(bytes_recv=0, bytes_sent=3000))
    assert machine.sample()["system/network/sent"] == 500.0


def test_the_machine_is_asked_at_most_every_few_seconds(monkeypatch):
    monkeypatch.undo()
    now = iter([10.0, 11.9, 12.0, 13.9, 14.5])
    machine = system.System(SimpleNamespace(type="cpu"), lambda: next(now))
    assert ["system/ram" in machine.sample() for _ in range(5)] == [True, False, True, False, True]


def test_without_the_library_there_is_nothing_and_it_is_said_once(recorded, monkeypatch, caplog):
    monkeypatch.setattr(system, "find_spec", lambda name: None)
    for _ in range(2):
        found = monitored(recorded(sync_every=4))
    assert {name for name in found if name.startswith("system")} == set()
    assert found["time/step"].keys() == set(range(8))
    assert caplog.text.count("psutil is not installed; pip install d9d_tracker[system]") == 1
