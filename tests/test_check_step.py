"""`check_step` finds what it is asked for."""

import sys
import warnings
from unittest import mock

import pytest
import torch
from torch._dynamo.utils import counters

from d9d_tracker.check_step import StepReport
from d9d_tracker.testing import check_step

EXTRA = []
check_step_module = sys.modules["d9d_tracker.check_step"]


def check(recorded, step):
    tracker = recorded(sync_every=2)
    with tracker.open() as run:
        return check_step(step, run, torch.randn(8, 4), run=run)


def test_a_tracked_step_is_clean_and_its_cost_is_counted(recorded):
    def step(run, batch):
        loss = batch.square().mean()
        run.scalar("loss", loss)
        run.bins("batch", batch)
        return loss

    report = check(recorded, step)
    assert report.is_clean, report
    assert (report.graphs, report.breaks, report.recompiles, report.host_syncs) == (1, [], 0, [])
    assert report.kernels >= 1
    assert report.kernels_added == 1  # by the scalar; what is counted is a call of ours, and no kernel of Inductor's


def test_a_step_without_tracking_has_none_added(recorded):
    assert check(recorded, lambda run, batch: batch.square().mean()).kernels_added == 0


def test_a_break_is_reported_with_its_line(recorded):
    def step(run, batch):
        loss = batch.square().mean()
        run.scalar("loss", loss.item())
        return batch * 2

    report = check(recorded, step)
    assert not report.is_clean
    assert report.graphs == 2
    assert len(report.breaks) == 1
    assert "test_check_step.py" in report.breaks[0]
    assert "loss.item()" in report.breaks[0]


def test_a_recompilation_is_counted(recorded):
    EXTRA.clear()

    def step(run, batch):
        EXTRA.append(0)
        run.scalar("loss", batch.mean() + len(EXTRA))
        return batch

    report = check(recorded, step)
    assert report.recompiles > 0
    assert not report.is_clean


def test_a_wait_inside_the_graph_is_found(recorded):
    def step(run, batch):
        run.bins("positive", batch[batch > 0])
        return batch

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        report = check(recorded, step)
    assert report.graphs == 1
    assert report.host_syncs == ["aten.index.Tensor"]
    assert not report.is_clean


def test_a_compiled_step_is_checked_as_well(recorded):
    def step(run, batch):
        run.scalar("loss", batch.mean())
        return batch

    assert check(recorded, torch.compile(step, fullgraph=True)).is_clean


def test_graphs_that_are_never_replayed_count_as_skipped(monkeypatch):
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: None)
    monkeypatch.delattr(torch.cuda.graphs, "register_graph_replay_start_hook", raising=False)

    def replay():
        torch.cuda.CUDAGraph.replay(None)  # without CUDA there is no graph, and nothing to replay

    def skip():
        replay()
        counters["inductor"]["cudagraph_skips"] += 1
        warnings.warn("skipping cudagraphs due to mutated inputs", stacklevel=1)

    def report(call):
        report = StepReport()
        check_step_module._try_cuda_graphs(call, report)
        return report

    assert report(replay).cuda_graph_skips == []
    assert report(replay).cuda_graphs == (0, 4)
    assert "all graphs" in report(lambda: None).cuda_graph_skips[0]
    assert set(report(skip).cuda_graph_skips) == {"skipping cudagraphs due to mutated inputs"}


def test_captures_and_replays_are_counted_by_torchs_hooks_where_it_has_them(monkeypatch):
    hooks = {"capture_start": [], "replay_start": []}

    def register(kind):
        def add(hook):
            hooks[kind].append(hook)
            return mock.Mock(remove=lambda: hooks[kind].remove(hook))

        return add

    for kind in hooks:
        monkeypatch.setattr(torch.cuda.graphs, f"register_graph_{kind}_hook", register(kind), raising=False)
    with check_step_module._counted_graphs() as counted:
        for kind, times in (("capture_start", 1), ("replay_start", 3)):
            for _ in range(times):
                hooks[kind][0](object())
    assert counted == {"captures": 1, "replays": 3}
    assert hooks == {"capture_start": [], "replay_start": []}


def test_waits_of_the_compiler_are_not_the_steps_and_the_mode_is_left_as_it_was(monkeypatch):
    mode, seen = ["error"], []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: mode[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", mode.append)

    def wait():
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    def compiling():
        seen.append(mode[-1])
        if len(seen) == 1:
            wait()

    def failing():
        if mode[-1] == "warn":
            raise ZeroDivisionError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert check_step_module._cuda_syncs(compiling) == []
        assert (seen, mode[-1]) == (["error", "warn"], "error")
        (where,) = check_step_module._cuda_syncs(wait)
        assert "test_check_step.py" in where
        with pytest.raises(ZeroDivisionError):
            check_step_module._cuda_syncs(failing)
    assert mode[-1] == "error"
