"""What ranks do whose values are on a device without a bank."""

from pathlib import Path

import programs
import torch
import torch.distributed as dist
from devices import device
from jobs import NAME, content, tracker
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial


def everything(rank: int, folder: Path, name: str) -> dict:
    """Log in every way on a device."""
    if name == device.NAME:
        device.install()
    torch.set_default_device(name)
    return programs.everything(rank, folder, 12, {"device": name, "sync_every": 4})


def watched(rank: int, folder: Path, name: str) -> dict:
    """Train a watched model, stop in the middle of a window, and go on from what each rank has saved."""
    if name == device.NAME:
        device.install()
    config = {"device": name, "sync_every": 4, "max_scalars": 64, "max_histograms": 32}
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).to(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    mesh = DeviceMesh(name, torch.arange(dist.get_world_size()), _init_backend=False)
    one = tracker(folder, **config)
    for steps in (range(6), range(6, 12)):
        with one.open(NAME) as run:
            run.watch(model, parameters=True, activations=True, norms=True, updates=True)
            for step in steps:
                run.set_step(step)
                inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(2 * step + rank)).to(name)
                loss = model(inputs).square().mean()
                run.scalar("loss", loss)
                run.scalar("part", DTensor.from_local(loss.detach(), mesh, [Partial()], run_check=False))
                optimizer.zero_grad()
                loss.backward()
                for parameter in model.parameters():
                    gradient = parameter.grad.cpu()
                    dist.all_reduce(gradient)
                    parameter.grad.copy_(gradient / dist.get_world_size())
                optimizer.step()
            state = one.state_dict()
        before, one = one, tracker(folder, **config)
        one._tracker.runs = before._tracker.runs
        one.load_state_dict(state)
    return {"content": content(one, rewritten=True), "copies": before.copies}
