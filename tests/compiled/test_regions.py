"""Logging inside ``torch.compiler.nested_compile_region``: exact, or refused by name; no gradient is lost."""

import pytest
import torch
from torch import nn

from d9d_tracker import TrackerValueError
from d9d_tracker.tracing import REGIONS_WRITE_IN_TRAINING


class Region(nn.Module):
    def __init__(self, index, run, by_handle):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.run = run
        self.by_handle = by_handle
        if by_handle:
            self.mean = run.scalar_series(f"layers.{index}/mean")
            self.out = run.bins_series(f"layers.{index}/out")

    @torch.compiler.nested_compile_region
    def forward(self, inputs):
        outputs = inputs + torch.relu(self.layer(inputs))
        if self.by_handle:
            self.mean.scalar(outputs.mean())
            self.out.bins(outputs)
        elif self.run is not None:
            self.run.scalar("mean", outputs.mean())
            self.run.bins("out", outputs)
        return outputs


def compiled(regions, backend):
    return torch.compile(lambda inputs: nn.Sequential(*regions)(inputs).sum(), fullgraph=True, backend=backend)


def gradients(regions):
    return [parameter.grad for region in regions for parameter in region.parameters()]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("by_handle", [False, True])
def test_a_region_called_once_trains(recorded, by_handle, backend):
    tracker = recorded()
    with tracker.open() as run:
        region = Region(0, run, by_handle)
        plain = Region(0, None, False)
        plain.load_state_dict(region.state_dict())
        call = compiled([region], backend)
        if not REGIONS_WRITE_IN_TRAINING:
            with pytest.raises(TrackerValueError, match="in training, with torch"):
                call(torch.randn(4, 8))
            return
        for step in range(3):
            run.set_step(step)
            inputs = torch.randn(4, 8)
            call(inputs).backward()
            plain(inputs).sum().backward()
    torch.testing.assert_close(gradients([region]), gradients([plain]))
    prefix = "layers.0/" if by_handle else ""
    assert len(tracker.run.points(f"{prefix}mean")) == 3
    assert sum(h.count for h in tracker.run.histograms(f"{prefix}out").values()) == 3 * 32


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_repeated_region_infers_and_logs_each_block_by_its_handle(recorded, graphs, backend, mode):
    tracker = recorded()
    with tracker.open() as run:
        regions = [Region(index, run, by_handle=True) for index in range(3)]
        call = compiled(regions, backend)
        outputs = []
        with mode():
            for step in range(2):
                run.set_step(step)
                run.set_context({"stage": str(step)})
                values = inputs = torch.randn(4, 8)
                call(inputs)
                for region in regions:
                    values = values + torch.relu(region.layer(values))
                    outputs.append(values.double().sum().item())
    for index in range(3):
        for step in range(2):
            (histogram,) = tracker.run.histograms(f"layers.{index}/out", stage=str(step)).values()
            assert histogram.sum == pytest.approx(outputs[3 * step + index], abs=1e-4)
            assert tracker.run.points(f"layers.{index}/mean", stage=str(step)) == {
                step: pytest.approx(outputs[3 * step + index] / 32, abs=1e-5)
            }
    assert graphs() == 1


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("requires_grad", [False, True], ids=["first differs", "all alike"])
@pytest.mark.parametrize("by_handle", [False, True])
def test_a_repeated_region_that_trains_is_refused_and_loses_no_gradient(recorded, by_handle, requires_grad, backend):
    with recorded().open() as run:
        regions = [Region(index, run, by_handle) for index in range(3)]
        inputs = torch.randn(4, 8, requires_grad=requires_grad)
        name = "layers.2/mean" if by_handle else "mean"
        with pytest.raises(TrackerValueError, match=f"{name}.*nested_compile_region.*outside"):
            compiled(regions, backend)(inputs).backward()
    assert gradients(regions) == [None] * 6


def test_a_repeated_region_that_names_its_series_is_refused(recorded):
    with recorded().open() as run, torch.no_grad():
        regions = [Region(index, run, by_handle=False) for index in range(3)]
        with pytest.raises(TrackerValueError, match=r"'mean'.*more than once.*handle"):
            compiled(regions, "aot_eager")(torch.randn(4, 8))


def test_a_repeated_region_that_logs_nothing_is_left_alone(recorded):
    with recorded().open() as run:
        regions = [Region(index, None, by_handle=False) for index in range(3)]

        def step(inputs):
            loss = nn.Sequential(*regions)(inputs).sum()
            run.scalar("loss", loss)
            return loss

        torch.compile(step, fullgraph=True, backend="aot_eager")(torch.randn(4, 8)).backward()
    assert all(gradient is not None for gradient in gradients(regions))


def test_a_repeated_region_that_counts_is_refused(recorded):
    with recorded().open() as run, torch.no_grad():

        @torch.compiler.nested_compile_region
        def region(inputs):
            run.counts("load", (inputs > 0).sum(0))
            return inputs + 1

        with pytest.raises(TrackerValueError, match=r"'load'.*more than once"):
            torch.compile(lambda inputs: region(region(inputs)), fullgraph=True, backend="aot_eager")(torch.ones(4, 8))


def test_a_watch_leaves_out_regions_that_train(recorded):
    tracker = recorded()
    with tracker.open() as run:
        regions = [Region(index, None, by_handle=False) for index in range(3)]
        model = nn.Sequential(nn.Linear(8, 8), *regions)
        run.watch(model, gradients=False, activations=True)
        torch.compile(lambda x: model(x).sum(), fullgraph=True, backend="aot_eager")(torch.randn(4, 8)).backward()
    assert None not in gradients(regions)
    assert {record.name for record in tracker.run.records} == {"activations/0"}
