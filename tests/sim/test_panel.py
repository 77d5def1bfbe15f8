"""The instrument panel on a GPU made of software: exact seconds of the device in every order, and what they cost."""

import threading

import pytest
import torch
from sim.machine import Event
from sim.simulation import simulated
from sim.trainings import opened, points

from d9d_tracker import log
from d9d_tracker.panel import system
from d9d_tracker.pipeline import checkpoint
from d9d_tracker_kernels.lanes import SUM

SCHEDULES = 4


def sleep(seconds):
    torch.cuda._sleep(seconds)


def series(records, *names):
    found = points(records)
    return {name: {step: value for (own, _, step), value in found.items() if own == name} for name in names}


def blocks(run, made):
    """Micro-batches, nested blocks, side streams, and one that spans steps; the host is quick, or slow."""
    now = [0.0]
    made.clock = run.clock.seconds = lambda: now[0]
    spanning = run.time("spanning")
    for step in range(10):
        run.set_step(step)
        for _ in range(2):
            with run.time("micro"):
                sleep(3)
                with run.time("inner"):
                    sleep(step)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), run.time("side"):
            sleep(50)
        torch.cuda.current_stream().wait_stream(side)
        if step == 4:
            spanning.__enter__()
        sleep(1)
        if step == 6:
            spanning.__exit__(None, None, None)
        now[0] += 0.5
        with pytest.raises(KeyError), run.time("broken"):
            raise KeyError


@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_the_devices_seconds_are_exact_and_the_hosts_are_its_own(seed):
    records = []
    with simulated(seed) as made, opened("cuda", records) as (_, run):
        blocks(run, made)
        assert made.waits == []
    found = series(records, "time/micro", "time/micro/host", "time/inner", "time/side", "time/spanning", "time/broken")
    assert found == {
        "time/micro": {step: 2.0 * (3 + step) for step in range(10)},
        "time/micro/host": dict.fromkeys(range(10), 0.0),
        "time/inner": {step: 2.0 * step for step in range(10)},
        "time/side": dict.fromkeys(range(10), 50.0),
        "time/spanning": {6: 1.0 + (16 + 50 + 1) + (18 + 50 + 1)},
        "time/broken": {},
    }


def test_a_timer_costs_two_events_a_step_and_makes_none(monkeypatch):
    recorded, record = [], Event.record

    def count(self, stream=None):
        recorded.append(self.enable_timing)
        record(self, stream)

    with simulated(1) as made, opened("cuda", []) as (_, run):
        made.sync_debug = "error"
        for step in range(30):
            run.set_step(step)
            if step == 10:
                run.flush()
                before = Event.timers
                monkeypatch.setattr(Event, "record", count)
            with run.time("whole"):
                sleep(1)
        assert Event.timers == before
        assert recorded.count(True) == 2 * 20
        assert made.waits == []


@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_a_state_in_the_middle_of_a_window_has_the_devices_seconds(seed):
    records = []
    with simulated(seed), opened("cuda", records, sync_every=4) as (tracker, run):
        for step in range(7):
            run.set_step(step)
            with torch.cuda.stream(torch.cuda.Stream()), run.time("work"):
                sleep(10 + step)
        window = [checkpoint.read(tracker.state_dict()).window for _ in range(2)][1]
    slot = [one.name for one in window.scalars].index("time/work")
    assert dict(zip(window.steps, window.lanes[:, SUM, slot].tolist(), strict=True)) == {4: 14.0, 5: 15.0, 6: 16.0}
    assert series(records, "time/work")["time/work"] == {step: 10.0 + step for step in range(7)}


def test_while_a_graph_is_captured_nothing_is_timed_and_it_is_said_once(caplog, monkeypatch):
    monkeypatch.setattr(log, "_said", set())
    records = []
    with simulated(2), opened("cuda", records) as (_, run):

        def work():
            for _ in range(2):
                with run.time("inside"):
                    sleep(2)

        work()
        graph = torch.cuda.CUDAGraph()
        with run.time("capture"), torch.cuda.graph(graph):
            work()
        for step in range(5):
            run.set_step(step)
            with run.time("replay"):
                graph.replay()
    found = series(records, "time/inside", "time/replay", "time/capture")
    assert found == {"time/inside": {0: 4.0}, "time/replay": dict.fromkeys(range(5), 4.0), "time/capture": {0: 0.0}}
    assert caplog.text.count("in a CUDA graph that is captured cannot be timed") == 1


@pytest.mark.parametrize("seed", range(SCHEDULES))
@pytest.mark.parametrize(("work", "waited"), [(7, 3.0), (30, 0.0)], ids=["waits for data", "is behind"])
def test_a_captured_step_and_what_the_device_waits_for(seed, work, waited, monkeypatch):
    monkeypatch.setattr(system, "find_spec", lambda name: None)
    records, now = [], [0.0]

    def loader():
        for batch in range(12):
            now[0] += 10.0  # the host waits
            yield batch

    with simulated(seed) as made, opened("cuda", records) as (_, run):
        tokens = torch.full((1,), 20.0, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            sleep(work)
        made.clock = run.clock.seconds = lambda: now[0]
        made.sync_debug = "error"
        made.statistics = {f"allocated_bytes.all.{of}": 1.0 for of in ("current", "peak")}
        run.monitor()
        for batch in run.timed(loader()):
            run.set_step(batch)
            made.statistics["allocated_bytes.all.peak"] += 5.0
            run.rate("tokens", tokens)
            graph.replay()
        assert made.waits == []
    steps = range(1, 11)
    times = ("time/step", "time/device", "time/idle", "time/data", "time/data/host", "tokens/s")
    found = series(records, *times, "memory/allocated/peak")
    assert {name: {step: found[name].get(step) for step in steps} for name in times} == {
        "time/step": dict.fromkeys(steps, 10.0),
        "time/device": dict.fromkeys(steps, max(10.0, work)),
        "time/idle": dict.fromkeys(steps, waited),
        "time/data": dict.fromkeys(steps, waited),
        "time/data/host": dict.fromkeys(steps, 10.0),
        "tokens/s": dict.fromkeys(steps, 2.0),
    }
    assert found["memory/allocated/peak"] == {0: 6.0, 3: 1 + 3 * 5.0, 7: 1 + 4 * 5.0}


def test_the_whole_panel_copies_once_a_window_and_records_an_event_a_step(monkeypatch):
    counts = []
    for panel in (False, True):
        recorded, record = [], Event.record

        def count(self, stream=None, recorded=recorded, record=record):
            recorded.append(self.enable_timing)
            record(self, stream)

        with monkeypatch.context() as patch, simulated(3) as made, opened("cuda", [], sync_every=5) as (tracker, run):
            patch.setattr(Event, "record", count)
            if panel:
                run.monitor()
            made.sync_debug = "error"
            for step in range(31):
                staging = run.buffers.staging
                if step == 1:
                    before, issued, allocated = recorded.count(True), made.issued, staging._buffers
                run.set_step(step)
                run.scalar("loss", 1.0)
                if panel:
                    run.rate("tokens", 7)
                sleep(1)
            assert made.waits == []
            # A host buffer more, if the one before was not read yet, is an event more.
            other = recorded.count(False) - staging._buffers
            done = made.issued - issued - (staging._buffers - allocated)
            counts.append((recorded.count(True) - before, other, tracker.copies, done))
    (plain_timed, plain_other, plain_copies, plain_issued), (timed, other, copies, issued) = counts
    assert (plain_timed, timed) == (0, 30)
    assert (other, copies) == (plain_other, plain_copies)
    assert issued - plain_issued == 30  # nothing else, neither kernels nor copies


def test_the_gpu_is_asked_by_torchs_functions_on_the_collectors_thread(monkeypatch):
    threads, records = set(), []

    def asked(value):
        def ask(device):
            threads.add((threading.current_thread().name, device.index))
            return value

        return ask

    monkeypatch.setattr(system, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(system, "find_spec", lambda name: name == "pynvml" or None)
    with simulated(0), opened("cuda:1", records) as (_, run):
        for name, value in {"utilization": 93, "power_draw": 640_000, "temperature": 61}.items():
            monkeypatch.setattr(torch.cuda, name, asked(value))
        monkeypatch.setattr(torch.cuda, "clock_rate", lambda device: 1 / 0)  # as where it is not supported
        run.monitor()
        for step in range(5):
            run.set_step(step)
    names = ("utilization", "power", "temperature", "clock")
    found = series(records, *(f"system/gpu/{name}" for name in names))
    assert [set(of.values()) for of in found.values()] == [{93.0}, {640.0}, {61.0}, set()]
    assert found["system/gpu/power"].keys() == {0, 3}
    assert threads == {("d9d_tracker collector", 1)}
