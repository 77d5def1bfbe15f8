"""`check_step` finds what it is asked for, and the doctor shows it."""

import sys
import warnings

import torch
from torch._dynamo.utils import counters

from d9d_tracker.__main__ import main
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
    assert 0 < report.kernels_added <= report.kernels


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

    def replay():
        torch.cuda.CUDAGraph.replay(None)  # without CUDA there is no graph, and nothing to replay

    assert check_step_module._cuda_graph_skips(replay) == []
    assert "all graphs" in check_step_module._cuda_graph_skips(lambda: None)[0]

    def skip():
        replay()
        counters["inductor"]["cudagraph_skips"] += 1
        warnings.warn("skipping cudagraphs due to mutated inputs", stacklevel=1)

    assert set(check_step_module._cuda_graph_skips(skip)) == {"skipping cudagraphs due to mutated inputs"}


def test_the_doctor_prints_its_table_and_passes(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for row in ("torch", "graph breaks", "recompiles", "host syncs", "kernels added"):
        assert row in printed
    assert "pass" in printed
    assert "fail" not in printed
