"""A window leaves the device by one copy into memory that is there already, and nobody reads it before it has come."""

import contextlib
import threading

import pytest
import torch

from d9d_tracker.bank import staging as window_module
from d9d_tracker.bank.staging import Staging

CPU = torch.device("cpu")


def parts(value, numbers=3):
    return [torch.full((numbers,), value, dtype=torch.float64), torch.full((2, 2), -value, dtype=torch.float64).t()]


def test_what_is_packed_is_a_snapshot_in_order():
    staging = Staging(20, CPU)
    source = parts(2.0)
    host, ready = staging.copy(source)
    source[0].zero_()
    assert ready is None
    assert host[:7].tolist() == [2.0] * 3 + [-2.0] * 4


def test_host_buffers_are_used_again_and_none_is_made_while_they_come_back():
    staging = Staging(20, CPU)
    addresses = set()
    for number in range(10):
        host, _ = staging.copy(parts(float(number)))
        addresses.add(host.data_ptr())
        staging.give_back(host)
    assert len(addresses) == 2


def test_windows_that_pile_up_get_more_memory_up_to_a_bound_then_wait_once(monkeypatch):
    monkeypatch.setattr(window_module, "_MOST_HOST_BYTES", 4 * 20 * 8)
    monkeypatch.setattr(window_module, "_LONGEST_WAIT_SECONDS", 0.01)
    staging = Staging(20, CPU)
    taken = [staging.copy(parts(1.0))[0] for _ in range(4)]
    waits = []
    staging._free = Free(staging._free, lambda: waits.append(1))
    for _ in range(3):
        with pytest.raises(RuntimeError, match="all 4 host buffers are full"):
            staging.copy(parts(1.0))
    assert len(waits) == 1
    staging.give_back(taken.pop())
    staging.copy(parts(1.0))


class Free:
    """A queue that tells when somebody waits for it."""

    def __init__(self, queue, tell):
        self._queue, self._tell = queue, tell

    def get(self, timeout):
        self._tell()
        return self._queue.get(timeout=timeout)

    def __getattr__(self, name):
        return getattr(self._queue, name)


def test_a_buffer_that_comes_back_in_time_is_waited_for(monkeypatch):
    monkeypatch.setattr(window_module, "_MOST_HOST_BYTES", 0)
    monkeypatch.setattr(window_module, "_LONGEST_WAIT_SECONDS", 60.0)
    staging = Staging(20, CPU)
    taken = [staging.copy(parts(1.0))[0] for _ in range(2)]
    threading.Timer(0.05, staging.give_back, [taken[0]]).start()
    assert staging.copy(parts(1.0))[0].data_ptr() == taken[0].data_ptr()


def test_a_copy_that_fails_gives_its_buffer_back():
    staging = Staging(5, CPU)
    for _ in range(5):
        with pytest.raises(ValueError, match="reshape"):
            staging.copy(parts(1.0))  # seven numbers do not fit
    assert staging._buffers == 2


def test_on_a_gpu_the_copy_waits_for_the_packing_and_the_packing_for_the_copy_before(monkeypatch):
    notes = []

    class Event:
        def __init__(self, number):
            self.number = number

        def record(self, stream):
            notes.append(("record", stream.name, self.number))

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            notes.append((self.name, "waits for", other.name))

        def wait_event(self, event):
            notes.append((self.name, "waits for event", event.number))

    @contextlib.contextmanager
    def on(stream):
        notes.append(("on", stream.name))
        yield
        notes.append(("off", stream.name))

    staging = Staging(20, CPU)
    staging._stream, staging._packed = Stream("copies"), torch.zeros(20, dtype=torch.float64)
    buffers = [staging._free.get(), staging._free.get()]
    staging._events = {id(buffer): Event(number) for number, buffer in enumerate(buffers)}
    for buffer in buffers:
        staging.give_back(buffer)
    monkeypatch.setattr(torch.cuda, "Event", None)  # none is made, and so none destroyed, on the way
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("training"))
    pack = window_module._pack
    monkeypatch.setattr(window_module, "_pack", lambda *arguments: (notes.append(("pack",)), pack(*arguments))[1])
    for number in range(2):
        host, ready = staging.copy(parts(3.0))
        assert host[:3].tolist() == [3.0] * 3
        assert isinstance(ready, Event)
        assert ready.number == number
    first, second = (
        [("pack",), ("copies", "waits for", "training"), ("on", "copies"), ("record", "copies", n), ("off", "copies")]
        for n in range(2)
    )
    assert notes == [*first, ("training", "waits for event", 0), *second]


def test_one_that_does_not_wait_gets_a_buffer_beyond_the_bound_which_is_gone_after_it(monkeypatch):
    monkeypatch.setattr(window_module, "_MOST_HOST_BYTES", 0)
    staging = Staging(20, CPU)
    taken = [staging.copy(parts(1.0))[0] for _ in range(2)]
    for _ in range(5):
        host, _ = staging.copy(parts(2.0), waits=False)
        assert host[:3].tolist() == [2.0] * 3
        assert host.data_ptr() not in [one.data_ptr() for one in taken]
        staging.give_back(host)
    assert staging._buffers == 2
    for host in taken:
        staging.give_back(host)
    assert staging._free.qsize() == 2
