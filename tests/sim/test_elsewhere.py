"""Values on other devices than the buffers: a model over two GPUs and the host, on the simulated GPU."""

import pytest
import torch
from sim.simulation import simulated
from sim.trainings import opened, points
from torch import nn

from d9d_tracker import TrackerValueError

DEVICES = "cuda:0", "cuda:1", "cpu"


class Spread(nn.Module):
    """Parts on several devices, each with a loss of its own: the simulation has no gradients across devices."""

    def __init__(self, devices):
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList(nn.Linear(6, 6) for _ in devices)
        self.devices = devices
        for part, device in zip(self.parts, devices, strict=True):
            part.to(device)

    def forward(self, inputs):
        parts = zip(self.parts, self.devices, strict=True)
        return [part(inputs.to(device)).tanh().square().mean() for part, device in parts]


def train(devices, bank):
    """Train, log in every way from every device; return the points, and what a state in mid-window holds."""
    records = []
    with opened(bank, records) as (tracker, run):
        model = Spread(devices)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run.watch(model, parameters=True, activations=True, norms=True, updates=True)
        handle = run.bins_series("handle")
        for step in range(10):
            run.set_step(step)
            optimizer.zero_grad()
            for loss in model(torch.linspace(-1, step, 12).reshape(2, 6)):
                loss.backward()
            optimizer.step()
            for place, device in enumerate(devices):
                value = model.parts[place].weight.detach().sum()
                run.scalar("weights", value, reduce="last")
                run.scalar("mean", value, weight=model.parts[0].weight.detach().abs().sum())
                run.counts("counts", torch.tensor([1, step, place]).to(device))
                run.bins("one", model.parts[place].bias.detach())
                handle.bins(model.parts[place].weight.detach())
            run.bins_many({f"weight {place}": part.weight.detach() for place, part in enumerate(model.parts)})
            if step == 5:
                tracker.state_dict()
    return points(records)


def close(left, right):
    assert left.keys() == right.keys()
    for key, value in left.items():
        other = right[key]
        if isinstance(value, tuple):
            assert value[-1] == other[-1], key
            value, other = value[:-1], other[:-1]
        assert value == pytest.approx(other, rel=1e-6, abs=1e-6), key


@pytest.mark.parametrize("seed", range(3))
def test_all_of_them_arrive_in_the_same_series_and_no_step_waits(seed):
    expected = train(("cpu",) * 3, "cpu")
    with simulated(seed) as made:
        found = train(DEVICES, "cuda:0")
        assert set(made.waits) == {"a blocking or pageable copy to the device"}  # of the batch, by the training
    close(found, expected)


def test_each_gpu_counts_in_one_launch():
    with simulated(0) as made, opened("cuda:0", []) as (_, run):
        values = {f"{index}": torch.ones(9).to(f"cuda:{index % 2}") for index in range(6)}
        run.bins_many(values)
        made.launches.clear()
        run.bins_many(values)
        assert len(made.launches) == 2


def test_a_capture_refuses_what_is_elsewhere_in_words():
    with simulated(0), opened("cuda:0", []) as (_, run):
        value = torch.ones(4).to("cuda:1")
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            with pytest.raises(TrackerValueError, match=r"'loss'.*is on cuda:1.*replay"):
                run.scalar("loss", value[0])
            with pytest.raises(TrackerValueError, match=r"'grad'.*are on cuda:1.*log them in eager code"):
                run.bins("grad", value)


def test_a_value_on_meta_is_refused_in_words():
    with simulated(0), opened("cuda:0", []) as (_, run):
        with pytest.raises(TrackerValueError, match="on meta has no value"):
            run.scalar("loss", torch.ones((), device="meta"))
        with pytest.raises(TrackerValueError, match="are on meta"):
            run.bins("grad", torch.ones(3, device="meta"))
