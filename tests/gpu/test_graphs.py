"""CUDA graphs: captured by hand and by `mode="reduce-overhead"`, against the eager loop."""

import time

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

pytest.importorskip("pydantic", reason="the tracker needs it, unlike the kernels: pip install pydantic")
pytest.importorskip("rich", reason="the tracker needs it, unlike the kernels: pip install rich")

from d9d_tracker import AccumulatingTracker, AccumulatorConfig, RunConfig, TrackerValueError
from d9d_tracker.testing import RecordingTracker, check_step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

STEPS = 1000


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()


@pytest.fixture
def replays(monkeypatch):
    """The CUDA graphs that were replayed, once for each time."""
    found, replay = [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (found.append(graph), replay(graph)))
    return found


def open_run(tmp_path, sync_every=50):
    tracker = RecordingTracker()
    config = AccumulatorConfig(device="cuda", sync_every=sync_every, backlog_dir=tmp_path / "backlog")
    return tracker, AccumulatingTracker(tracker, config).open(RunConfig(name="run"))


def log(run, values, constant=2.5):
    """Log whole numbers, so that sums are exact in any order."""
    run.scalar("sum", values.sum(), reduce="sum")
    run.scalar("constant", constant)
    run.scalars({"most": values.amax(), "least": values.amin()}, {"kind": "extreme"}, reduce="max")
    run.bins("values", values)
    run.bins("every third", values, every=3)
    run.bins_many({"first": values[:3], "rest": values[3:]})
    return values * 2


def batch(step):
    return (torch.arange(64) * (step + 1) % 97).float()


def points(run):
    found = {}
    for record in run.records:
        value = record.value
        if not isinstance(value, float):
            value = (value.count, value.sum, value.min, value.max, tuple(value.counts))
        found[record.name, tuple(record.context.items()), record.step] = value
    return found


def eager_points(tmp_path, function=log):
    tracker, context = open_run(tmp_path)
    with context as run:
        for step in range(STEPS):
            run.set_step(step)
            function(run, batch(step).cuda())
    return points(tracker.run)


def test_a_captured_step_gives_the_points_of_the_eager_loop(tmp_path):
    tracker, context = open_run(tmp_path)
    with context as run:
        inputs, constant = batch(0).cuda(), torch.tensor(2.5).cuda()  # a number would be logged as it was
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream), run_of(tmp_path / "warm up") as other:
            log(other, inputs)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            log(run, inputs, constant)
        for step in range(STEPS):
            run.set_step(step)
            inputs.copy_(batch(step))
            graph.replay()
    assert points(tracker.run) == eager_points(tmp_path)


def run_of(folder):
    return open_run(folder)[1]


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_step_gives_the_points_of_the_eager_loop(tmp_path, mode, replays):
    tracker, context = open_run(tmp_path)
    with context as run:
        compiled = torch.compile(log, fullgraph=True, mode=mode)
        for step in range(STEPS):
            run.set_step(step)
            torch.compiler.cudagraph_mark_step_begin()
            compiled(run, batch(step).cuda())
    assert counters["stats"]["unique_graphs"] == 1
    assert counters["inductor"]["cudagraph_skips"] == 0
    assert len(replays) >= (STEPS - 2 if mode == "reduce-overhead" else 0)
    assert points(tracker.run) == eager_points(tmp_path)


class Model(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.run = run
        self.linear = nn.Linear(64, 64, bias=False)
        self.linear.weight.data = torch.eye(64)

    def forward(self, inputs, rate):
        hidden = self.linear(inputs)
        hidden.register_hook(lambda gradient: self.run.scalar("gradient", gradient.sum(), reduce="sum"))
        hidden.register_hook(lambda gradient: self.run.bins("gradients", gradient))
        self.run.scalar("hidden", hidden.sum(), reduce="sum")
        self.run.scalar("rate", rate)
        return hidden.sum()


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_training_with_gradient_hooks_and_a_changing_rate(tmp_path, mode, replays):
    results = []
    for compiled in (False, True):
        tracker, context = open_run(tmp_path / str(compiled))
        with context as run:
            model = Model(run).cuda()
            forward = torch.compile(model, fullgraph=True, mode=mode) if compiled else model
            for step in range(100):
                run.set_step(step)
                for micro in range(2):
                    torch.compiler.cudagraph_mark_step_begin()
                    forward(batch(2 * step + micro).cuda(), 0.1 / (step + 1)).backward()
                    model.zero_grad()  # a gradient lies in the graph's memory, which the next forward overwrites
        results.append(points(tracker.run))
    assert counters["stats"]["unique_graphs"] == 1
    assert counters["inductor"]["cudagraph_skips"] == 0
    assert len(replays) >= (2 * 198 if mode == "reduce-overhead" else 0)  # a forward's and a backward's
    assert results[0] == results[1]


def test_contexts_and_a_second_run_replay_into_their_own_series(tmp_path):
    tracker = RecordingTracker()
    config = AccumulatorConfig(device="cuda", sync_every=7, backlog_dir=tmp_path / "backlog")
    tracked = AccumulatingTracker(tracker, config)
    compiled = torch.compile(log, fullgraph=True, mode="reduce-overhead")
    for name in ("first", "second"):
        with tracked.open(RunConfig(name=name)) as run:
            for step in range(30):
                run.set_step(step)
                run.set_context({"stage": "eval" if step % 3 == 0 else "train"})
                torch.compiler.cudagraph_mark_step_begin()
                compiled(run, torch.full((4,), float(step), device="cuda"))
        for stage in ("train", "eval"):
            expected = {step: 4.0 * step for step in range(30) if (step % 3 == 0) == (stage == "eval")}
            assert tracker.run.points("sum", stage=stage) == expected
    assert counters["stats"]["unique_graphs"] == 2


def test_what_a_replay_would_miss_is_refused_during_capture(tmp_path):
    _, context = open_run(tmp_path)
    with context as run:
        value = torch.ones(1, device="cuda")
        for misplaced, words in (
            (lambda: run.set_step(1), "set_step was called while a CUDA graph is captured"),
            (run.flush, "flush was called while a CUDA graph is captured"),
            (lambda: run.scalar("loss", torch.ones(())), "'loss'.*on the CPU"),
        ):
            with torch.cuda.graph(torch.cuda.CUDAGraph()):
                value.add_(1)
                with pytest.raises(TrackerValueError, match=words):
                    misplaced()


def test_windows_arrive_while_a_graph_is_captured(tmp_path):
    tracker, context = open_run(tmp_path, sync_every=1)
    with context as run:
        total = torch.zeros(1, device="cuda")
        total.add_(0)

        def log_steps(first, cycles):
            for step in range(first, first + 20):
                run.set_step(step)
                run.scalar("loss", total + step)
                torch.cuda._sleep(cycles)

        log_steps(0, 0)  # allocates what allocating would make the host wait for
        run.flush()
        log_steps(20, 20_000_000)  # some 10 ms a step, so that most windows are on their way when the capture begins
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(torch.cuda.Stream()):
            graph.capture_begin()  # torch.cuda.graph would wait for the device first
            before = len(tracker.run.records)
            total.add_(1)
            deadline = time.monotonic() + 60
            while len(tracker.run.records) < 39:  # of 40: the last window is still open
                assert time.monotonic() < deadline
                time.sleep(0.01)
            graph.capture_end()
        graph.replay()
        assert before < 39
        assert total.item() == 1
    assert tracker.run.points("loss") == {step: float(step) for step in range(40)}


def test_no_sync_in_a_training_step(tmp_path):
    _, context = open_run(tmp_path, sync_every=3)
    with context as run:
        inputs = batch(0).cuda()
        run.set_step(0)
        log(run, inputs)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for step in range(1, 20):
                run.set_step(step)
                log(run, inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_check_step_finds_a_clean_step(tmp_path):
    _, context = open_run(tmp_path)
    with context as run:
        report = check_step(log, run, batch(0).cuda(), run=run)
    assert report.is_clean, report
