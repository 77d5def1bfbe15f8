"""Values on several devices, beside buffers that are configured here or there, give what they give on the host."""

import pytest
import torch
from devices import device, plugin
from devices.on_device.compared import close, same
from devices.on_device.test_plain import every_way
from torch import nn

BANKS = "cpu", plugin.NAME
OTHERS = ["cpu", *([f"{plugin.NAME}:1"] if plugin.NAME == device.NAME else [])]


def test_values_beside_buffers_on_the_host(on):
    same(on(plugin.NAME, every_way, bank="cpu"), on("cpu", every_way))


@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("bank", BANKS)
def test_a_model_on_several_devices(on, bank, other, is_first):
    """Each part with a loss of its own: the simulated device has no events, which gradients across devices need."""

    def train(run, *places):
        with torch.device("cpu"):
            torch.manual_seed(0)
            parts = nn.ModuleList([nn.Linear(4, 60), nn.Linear(60, 40)])
        for part, place in zip(parts, places, strict=True):
            part.to(place)
        optimizer = torch.optim.SGD(parts.parameters(), lr=0.1)
        run.watch(parts, parameters=True, activations=True, norms=True, updates=True)
        for step in range(6):
            run.set_step(step)
            optimizer.zero_grad()
            values = torch.arange(40.0, device="cpu").view(10, 4) / 40
            for part, place in zip(parts, places, strict=True):
                values = part(values.detach().to(place))
                loss = values.square().mean()
                loss.backward()
                run.scalar("loss", loss)
            optimizer.step()

    places = (other, plugin.NAME) if is_first else (plugin.NAME, other)
    found = on(plugin.NAME, lambda run, _: train(run, *places), bank=bank)
    expected = on("cpu", lambda run, _: train(run, "cpu", "cpu"))
    assert found.keys() == expected.keys()
    close(found, expected)
