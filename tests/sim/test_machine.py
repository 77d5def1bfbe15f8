"""The instrument itself: what a real GPU refuses or does late is refused or done late here."""

import threading

import pytest
import torch
from sim.simulation import library, machine, simulated

from d9d_tracker.devices import event_wait
from d9d_tracker.devices.event_wait import relaxed


def capture(work, **options):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, **options):
        work()
    return graph


def test_work_is_done_late_and_in_the_order_of_its_stream():
    with simulated(0, eagerness=0.0) as made:
        values = torch.zeros(3, device="cuda")
        values.add_(2)
        values.mul_(3)
        assert values.hidden.tolist() == [0.0] * 3
        assert values.tolist() == [6.0] * 3
        assert made.waits


def test_streams_get_on_in_any_order_unless_one_waits():
    seen = {False: set(), True: set()}
    for seed in range(40):
        for waits in (False, True):
            with simulated(seed, eagerness=0.0):
                values, stream = torch.zeros(1, device="cuda"), torch.cuda.Stream()
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    values.add_(1)
                if waits:
                    torch.cuda.current_stream().wait_stream(stream)
                values.mul_(10)
                torch.cuda.synchronize()
                seen[waits].add(values.item())
    assert seen == {False: {1.0, 10.0}, True: {10.0}}


def test_a_capture_does_nothing_and_a_replay_does_it_again():
    with simulated(1):
        values, other = torch.zeros(1, device="cuda"), torch.zeros(1, device="cuda")

        def work():
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                other.add_(1)
            torch.cuda.current_stream().wait_stream(side)
            values.add_(torch.ones(1, device="cuda") + other)

        graph = capture(work)
        assert (values.item(), other.item()) == (0.0, 0.0)
        graph.replay()
        graph.replay()
        assert (values.item(), other.item()) == (2.0 + 3.0, 2.0)


def test_pinned_memory_is_read_when_the_copy_is_done_and_other_memory_at_once():
    with simulated(2, eagerness=0.0):
        pinned, pageable = torch.ones(1).pin_memory(), torch.ones(1)
        late, early = pinned.to("cuda", non_blocking=True), pageable.to("cuda")
        pinned.fill_(5.0)
        pageable.fill_(5.0)
        assert (late.item(), early.item()) != (5.0, 5.0)
        machine().sync_debug = "error"
        with pytest.raises(RuntimeError, match="pageable"):
            pageable.to("cuda", non_blocking=True)


REFUSED = {
    "a value on the host": lambda values: values.item(),
    "a pageable copy": lambda values: torch.ones(1).cuda(),
    "a wait for the device": lambda values: torch.cuda.synchronize(),
    "a wait for an event": lambda values: torch.cuda.Event().synchronize(),
    "a kernel that is not loaded": lambda values: machine().refuse_in_captures("a load"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_capture_refuses_ends_it(what):
    with simulated(3):
        values = torch.zeros(1, device="cuda")

        def work():
            with pytest.raises(RuntimeError, match="capturing"):
                REFUSED[what](values)

        with pytest.raises(RuntimeError, match="previous error during capture"):
            capture(work)


@pytest.mark.parametrize("mode", ["global", "thread_local"])
@pytest.mark.parametrize("is_relaxed", [False, True])
def test_another_threads_question_breaks_a_global_capture_unless_it_is_relaxed(mode, is_relaxed):
    with simulated(4):
        event, errors = torch.cuda.Event(), []

        def ask():
            try:
                if is_relaxed:
                    with relaxed():
                        event.query()
                else:
                    event.query()
            except RuntimeError as error:
                errors.append(error)

        def work():
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()

        if mode == "global" and not is_relaxed:
            with pytest.raises(RuntimeError, match="previous error"):
                capture(work, capture_error_mode=mode)
        else:
            capture(work, capture_error_mode=mode)
        assert bool(errors) == (mode == "global" and not is_relaxed)


def test_a_capture_that_is_not_joined_or_depends_on_the_outside_is_refused():
    with simulated(5):
        values, side = torch.zeros(1, device="cuda"), torch.cuda.Stream()

        def unjoined():
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                values.add_(1)

        with pytest.raises(RuntimeError, match="not joined"):
            capture(unjoined)
        event = side.record_event()

        def outside():
            with pytest.raises(RuntimeError, match="outside"):
                event.wait()

        with pytest.raises(RuntimeError, match="previous error"):
            capture(outside)


def test_streams_come_from_a_pool_of_32():
    with simulated(6):
        streams = [torch.cuda.Stream() for _ in range(40)]
        assert len(set(streams)) == 32
        assert streams[0] == streams[32]
        assert torch.cuda.Stream("cuda:1").device.index == 1


def test_what_events_measure_is_the_same_in_every_order():
    found = set()
    for seed in range(20):
        with simulated(seed) as made:
            start, middle, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
            side, now = torch.cuda.Stream(), [0.0]
            made.clock = lambda now=now: now[0]
            start.record()
            torch.cuda._sleep(5)
            graph = capture(lambda: torch.cuda._sleep(2))
            graph.replay()
            with torch.cuda.stream(side):
                torch.cuda._sleep(30)
            middle.record()
            torch.cuda.current_stream().wait_stream(side)
            now[0] = 40.0
            torch.cuda._sleep(1)
            end.record()
            torch.cuda.synchronize()
            found.add((start.elapsed_time(middle), middle.elapsed_time(end)))
    assert found == {(7000.0, 34000.0)}


def test_events_tell_the_time_only_if_asked_to_and_when_they_have_happened():
    with simulated(0, eagerness=0.0):
        start, end, plain = torch.cuda.Event(True), torch.cuda.Event(enable_timing=True), torch.cuda.Event()
        for event in (start, end, plain):
            event.record()
        with pytest.raises(RuntimeError, match="not ready"):
            start.elapsed_time(end)
        torch.cuda.synchronize()
        assert start.elapsed_time(end) == 0.0
        with pytest.raises(ValueError, match="enable_timing"):
            start.elapsed_time(plain)


def test_devices_do_not_share_memory():
    with simulated(7):
        here = torch.ones(3, device="cuda")
        there = here.to("cuda:1")
        assert there.device.index == 1
        assert there.tolist() == [1.0] * 3
        with pytest.raises(RuntimeError, match="illegal memory access"):
            machine().memory.bytes_at(here.data_ptr(), 4, device=1)


def test_what_the_process_knows_from_before_is_put_aside(monkeypatch):
    """A guard for tracing, and that there is no driver: other tests leave both behind in their process."""
    monkeypatch.setattr(event_wait, "_exchange_capture_mode", lambda: None)
    library().sim_guard(False)
    try:
        with simulated(8):
            weight = torch.ones(2, 3, device="cuda", requires_grad=True)
            (weight * weight).sum().backward()
            assert weight.grad.tolist() == [[2.0] * 3] * 2
            with relaxed() as may_wait:
                assert may_wait
    finally:
        library().sim_unguard(False)
