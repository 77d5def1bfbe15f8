"""What ranks do with norms of models that are divided among them."""

import math
from pathlib import Path

import torch
import torch.distributed as dist
from jobs import NAME, content, tracker
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from d9d_tracker import TrackerValueError

ORDERS = {"two": 2.0, "one": 1.0, "most": math.inf}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.scale = nn.Linear(6, 8), nn.Linear(8, 3), nn.Parameter(torch.ones(3))

    def forward(self, values):
        return self.down(torch.relu(self.up(values))) * self.scale


def parallel(how: str) -> nn.Module:
    size = dist.get_world_size()
    model = Model()
    if how == "ddp":
        return DistributedDataParallel(model)
    if how in ("fsdp", "hsdp"):
        shape, names = ((size,), ("shard",)) if how == "fsdp" else ((2, size // 2), ("replicate", "shard"))
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        fully_shard(model.up, mesh=mesh)
        return fully_shard(model, mesh=mesh)
    shape, names = ((size,), ("tp",)) if how == "tp" else ((2, size // 2), ("dp", "tp"))
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    parallelize_module(model, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return fully_shard(model, mesh=mesh["dp"]) if how == "fsdp and tp" else model


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def norms(rank: int, folder: Path, how: str) -> tuple[dict, dict]:
    """Return the norms that were tracked, and those of the whole tensors."""
    size = dist.get_world_size()
    # Rows that ranks of a group share are the same; each group of data parallel ranks has rows of its own.
    share = {"tp": 0, "fsdp and tp": rank // max(1, size // 2)}.get(how, rank)
    model = parallel(how)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    one, expected = tracker(folder, max_scalars=64), {}
    named = {name.removeprefix("module."): parameter for name, parameter in model.named_parameters()}
    with one.open(NAME) as run:
        for name, p in ORDERS.items():
            run.watch(model, gradients=False, norms=True, updates=name == "two", p=p, prefix=name)
        for step in range(3):
            run.set_step(step)
            torch.manual_seed(10 * step + share)
            optimizer.zero_grad()
            model(torch.randn(4, 6)).square().mean().backward()
            before = {name: whole(parameter) for name, parameter in named.items()}
            found = {"parameters": before, "gradients": {name: whole(one.grad) for name, one in named.items()}}
            optimizer.step()
            updates = {name: whole(parameter) - before[name] for name, parameter in named.items()}
            for prefix, p in ORDERS.items():
                kinds = found | ({"updates": updates} if prefix == "two" else {})
                for kind, tensors in kinds.items():
                    values = {
                        f"{prefix}/norms/{kind}/{name}": tensor.norm(p).item() for name, tensor in tensors.items()
                    }
                    total = torch.nn.utils.get_total_norm(list(tensors.values()), p).item()
                    values[f"{prefix}/norms/{kind}"] = total
                    expected |= {(name, (), step): value for name, value in values.items()}
            for name in ("", *(f"/{name}" for name in named)):
                update, parameter = (
                    expected[f"two/norms/{kind}{name}", (), step] for kind in ("updates", "parameters")
                )
                expected[f"two/norms/ratios{name}", (), step] = update / parameter
    return content(one), expected


def stages(rank: int, folder: Path) -> tuple[dict, float]:
    """Return what is tracked of a model whose layers are on different ranks, and the norm of this rank's."""
    model = nn.ModuleDict({f"stage{rank}": nn.Linear(3, 3)})
    one = tracker(folder)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, rank + 1.0)
    with one.open(NAME) as run:
        run.watch(model, gradients=False, norms=True)
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    return content(one), math.sqrt(12) * (rank + 1)


def sharded_meanwhile(rank: int, folder: Path) -> tuple[dict, dict]:
    """Return what is tracked of a model that is sharded while it is watched: whole before, in pieces after it."""
    model, one, expected = Model(), tracker(folder, sync_every=1, max_scalars=64, max_histograms=16), {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with one.open(NAME) as run:
        run.watch(model, parameters=True, activations=True, norms=True)
        for step in range(4):
            run.set_step(step)
            if step == 2:
                fully_shard(model.up)
                fully_shard(model)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            torch.manual_seed(step)  # on all ranks, whose gradients are the same then
            model(torch.randn(4, 6)).square().mean().backward()
            for name, parameter in model.named_parameters():
                for kind, tensor in (("gradients", whole(parameter.grad)), ("parameters", whole(parameter))):
                    times = 1 if step >= 2 else dist.get_world_size()
                    sizes = {f"{kind}/{name}": times * tensor.numel(), f"norms/{kind}/{name}": tensor.norm().item()}
                    expected |= {(key, (), step): value for key, value in sizes.items()}
            expected |= {(f"activations/{name}", (), step): 4 * 2 * size for name, size in (("up", 8), ("down", 3))}
            optimizer.step()
            optimizer.zero_grad()
    totals = {("norms/gradients", ()), ("norms/parameters", ())}
    found = {key: sum(one[1]) if isinstance(one, tuple) else one for key, one in content(one).items()}
    return {key: value for key, value in found.items() if key[:2] not in totals}, expected


def flat_shards(rank: int, folder: Path) -> str:
    model = FullyShardedDataParallel(nn.Linear(4, 4), device_id=torch.device("cpu"), use_orig_params=True)
    with tracker(folder).open(NAME) as run:
        try:
            run.watch(model, norms=True)
        except TrackerValueError as error:
            return str(error)
    return ""
