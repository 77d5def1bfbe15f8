"""What the host code gives the devices: which one, whose streams, what memory."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from sim.simulation import simulated

from d9d_tracker import AccumulatorConfig
from d9d_tracker.bank.buffers import Buffers
from d9d_tracker.calls.arguments import check_number
from d9d_tracker.devices.event_wait import wait_for
from d9d_tracker_kernels import launch
from d9d_tracker_kernels.bank import allocate
from d9d_tracker_kernels.binning import CELLS, HEADER
from d9d_tracker_kernels.ops import histogram_many_


def test_the_device_is_the_current_one():
    with simulated(0), torch.cuda.device(1):
        buffers = Buffers(AccumulatorConfig(device="auto", max_scalars=4, max_histograms=2))
        assert buffers.device == torch.device("cuda", 1)
        assert buffers.histograms.counts.device == buffers.scalars.current.device == buffers.device


def test_tickets_are_zero_whatever_the_memory_held(monkeypatch):
    empty = torch.empty
    with simulated(0):
        monkeypatch.setattr(torch, "empty", lambda *shape, **options: empty(*shape, **options).fill_(7))
        assert not allocate(2, "cuda").partials.cpu().any()


def test_each_stream_has_tables_of_its_own():
    """One that waits for another's work must not find the addresses that the other is given meanwhile."""
    binning = (0, 2048, 0.0, 0.0)
    for seed in range(6):
        with simulated(seed):
            step, counted = torch.zeros(1, dtype=torch.int64, device="cuda"), []
            streams = [torch.cuda.Stream() for _ in range(2)]
            torch.cuda.synchronize()
            for number, stream in enumerate(streams):
                with torch.cuda.stream(stream):
                    state = allocate(2, "cuda")
                    for size in (4.0, 8.0):
                        values = [torch.full((6,), size * (number + 1), device="cuda") for _ in range(2)]
                        bank = (state.counts, state.moments, state.partials, state.places)
                        histogram_many_(values, *bank, step, [0, 1], 1, *binning)
                counted.append(state.moments)
            assert len(launch._plans) == 2
            torch.cuda.synchronize()
            sums = [moments.tolist()[0][0] for moments in counted]
        assert sums == [72.0, 144.0], f"schedule {seed}"


def test_a_finished_histogram_comes_from_pinned_memory():
    with simulated(1) as made:
        buffers = Buffers(AccumulatorConfig(device="cuda", max_scalars=4, max_histograms=2))
        torch.cuda.synchronize()
        waits = len(made.waits)
        torch.cuda.set_sync_debug_mode("error")
        counts = np.zeros(HEADER + CELLS, np.int64)
        counts[HEADER + 3] = 5
        buffers.merge_histogram(1, counts, np.array([1.0, 2.0, 0.5, 0.6]))
        torch.cuda.set_sync_debug_mode("default")
        assert len(made.waits) == waits
        assert buffers.histograms.counts.tolist()[1][HEADER + 3] == 5


def test_a_window_arrives_while_a_graph_is_captured():
    """It would end the capture of whoever captures globally, were the collector not relaxed about it."""
    with simulated(2):
        event = torch.cuda.Event()
        event.record()
        with torch.cuda.graph(torch.cuda.CUDAGraph()), ThreadPoolExecutor(1) as collector:
            collector.submit(wait_for, event).result()
        assert event.query()


def test_compiled_code_brings_a_value_of_the_host_to_the_device_without_a_wait(monkeypatch):
    with simulated(0) as made:
        value = torch.ones(()).pin_memory()
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        moved = check_number("loss", (), value, torch.device("cuda", 0))
        assert moved.device == torch.device("cuda", 0)
        assert made.waits == []
