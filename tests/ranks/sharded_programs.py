"""What the ranks do with tensors that are divided among them."""

from pathlib import Path

import torch
import torch.distributed as dist
from jobs import NAME, content, tracker
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn.parallel import DistributedDataParallel

from d9d_tracker import TrackerTypeError

WHOLE = (torch.arange(7 * 5, dtype=torch.float32).reshape(7, 5) - 17) / 4
SMALL = torch.tensor([1.5, -2.0])  # fewer rows than ranks: some shards are empty
PLACEMENTS = {
    "shard 0": [Shard(0)],
    "shard 1": [Shard(1)],
    "replicate": [Replicate()],
    "shard 0, shard 1": [Shard(0), Shard(1)],
    "shard 0 twice": [Shard(0), Shard(0)],
    "replicate, shard": [Replicate(), Shard(0)],
    "shard, replicate": [Shard(0), Replicate()],
    "replicate twice": [Replicate(), Replicate()],
}


def counted(rank: int, folder: Path, compiled: bool) -> dict:
    """Count the same tensor under every placement that the number of ranks has room for."""
    size = dist.get_world_size()
    meshes = {1: init_device_mesh("cpu", (size,))}
    if size == 4:
        meshes[2] = init_device_mesh("cpu", (2, 2))
    one = tracker(folder, max_histograms=32)
    with one.open(NAME) as run:

        def log(tensors: dict[str, torch.Tensor]) -> None:
            for name, values in tensors.items():
                run.bins(name, values)

        tensors = {}
        for name, placements in PLACEMENTS.items():
            if len(placements) in meshes:
                mesh = meshes[len(placements)]
                tensors[f"whole: {name}"] = distribute_tensor(WHOLE, mesh, placements)
                if "1" not in name:
                    tensors[f"small: {name}"] = distribute_tensor(SMALL, mesh, placements)
        (torch.compile(log, fullgraph=True, backend="aot_eager") if compiled else log)(tensors)
    return content(one)


def scalars(rank: int, folder: Path, compiled: bool) -> tuple[dict, list[str]]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    one = tracker(folder)
    errors, strided = [], _StridedShard(0, split_factor=2)  # of FSDP and tensor parallelism together
    local = torch.tensor(float(rank + 1))

    def partial(kind: str) -> DTensor:
        return DTensor.from_local(local, mesh, [Partial(kind)])

    def log(run) -> None:
        run.scalar("replicated", DTensor.from_local(torch.tensor(5.0), mesh, [Replicate()]))
        run.scalar("brought together", partial("sum").full_tensor())
        for reduce in ("mean", "sum"):
            run.scalar(f"sum/{reduce}", partial("sum"), reduce=reduce)
            run.scalar(f"avg/{reduce}", partial("avg"), reduce=reduce)
        run.scalar("sum/weighted", partial("sum"), weight=3)
        run.scalar("min", partial("min"), reduce="min")
        run.scalar("max", partial("max"), reduce="max")

    refused = {
        "partial bins": lambda run, name: run.bins(name, DTensor.from_local(torch.ones(3), mesh, [Partial()])),
        "partial scalar": lambda run, name: run.scalar(name, partial("sum"), reduce="last"),
        "partial minimum": lambda run, name: run.scalar(name, partial("min")),
        "shard scalar": lambda run, name: run.scalar(name, distribute_tensor(torch.ones(1), mesh, [Shard(0)])),
        "shard counts": lambda run, name: run.counts(name, distribute_tensor(torch.arange(4), mesh, [Shard(0)])),
        "strided counts": lambda run, name: run.counts(name, DTensor.from_local(torch.arange(2), mesh, [strided])),
    }
    with one.open(NAME) as run:
        (torch.compile(log, fullgraph=True, backend="aot_eager") if compiled else log)(run)
        for name, call in refused.items():
            try:
                call(run, name)
            except TrackerTypeError as error:
                errors.append(str(error))
    return content(one), errors


def norms(rank: int, folder: Path, how: str) -> tuple[dict, dict]:
    """Return the norms that were tracked, logged as they come, and the whole ones."""
    size = dist.get_world_size()
    net = model()
    if how == "hsdp":
        mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("replicate", "shard"))
    else:
        mesh = init_device_mesh("cpu", (size,))
    fully_shard(net, mesh=mesh)
    one = tracker(folder)
    whole = {}
    with one.open(NAME) as run:
        for step in range(3):
            run.set_step(step)
            net.zero_grad()
            net(batch(step)).square().mean().backward()
            for name, parameter in net.named_parameters():
                for p in (1.0, 2.0, 3.0):
                    norm = torch.linalg.vector_norm(parameter.grad, p)
                    assert any(placement.is_partial() for placement in norm.placements)
                    run.scalar(f"{name} {p:g}", norm)
                    whole[f"{name} {p:g}", (), step] = norm.full_tensor().item()
            total = torch.nn.utils.get_total_norm([parameter.grad for parameter in net.parameters()])
            run.scalar("total", total)
            whole["total", (), step] = total.full_tensor().item()
    return content(one), whole


# Halves, whole numbers and means over powers of two: float32 adds these up exactly, in whatever order ranks do it.
def model() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4, bias=False))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randint(-2, 3, parameter.shape) / 2)
    return net


def batch(shard: int) -> torch.Tensor:
    return torch.randint(-1, 2, (4, 6), generator=torch.Generator().manual_seed(shard)).float()


def gradients(rank: int, folder: Path, how: str, shards: int) -> tuple[dict, dict]:
    """Return what was tracked of the gradients, and the gradients themselves."""
    size = dist.get_world_size() if dist.is_initialized() else 1
    net = model()
    if how == "fsdp":
        mesh = init_device_mesh("cpu", (size,))
        for layer in (net[0], net[2], net):
            fully_shard(layer, mesh=mesh)
    elif how == "hsdp":
        mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("replicate", "shard"))
        fully_shard(net, mesh=mesh)
    elif how == "ddp":
        net = DistributedDataParallel(net)
    one = tracker(folder)
    names = {name.removeprefix("module."): parameter for name, parameter in net.named_parameters()}
    with one.open(NAME) as run:
        for step in range(3):
            run.set_step(step)
            net.zero_grad()
            own = torch.cat(
                [batch(step * shards + shard) for shard in range(rank * shards // size, (rank + 1) * shards // size)]
            )
            net(own).square().mean().backward()
            for name, parameter in names.items():
                if how != "ddp" or rank == 0:  # every rank of DDP holds the same plain tensor
                    run.bins(name, parameter.grad)
                if how == "ddp":
                    run.bins(f"{name} of all ranks", parameter.grad)
    whole = {
        name: parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
        for name, parameter in names.items()
    }
    return content(one), whole


def watched(rank: int, folder: Path) -> dict:
    """A watch of a model whose shards are replicated on other ranks, which alone count them."""
    net = model()
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("replicate", "shard"))
    fully_shard(net, mesh=mesh)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    one = tracker(folder, sync_every=2)
    with one.open(NAME) as run:
        run.watch(net, gradients=True, parameters=True)
        for step in range(4):
            run.set_step(step)
            net(batch(step)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return content(one)


def typed(rank: int, folder: Path) -> tuple[dict, list[str]]:
    """Count and log what `spmd_types` has typed, as the local parts of the same placements."""
    import spmd_types as spmd

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    groups = [mesh.get_group(name) for name in ("dp", "tp")]
    one, errors = tracker(folder, max_histograms=32), []

    def having(values: torch.Tensor, kinds) -> torch.Tensor:
        spmd.assert_type(values, dict(zip(groups, kinds, strict=True)))
        return values

    with one.open(NAME) as run, spmd.set_current_mesh(mesh):
        for name, placements in PLACEMENTS.items():
            if len(placements) == 2:
                local = distribute_tensor(WHOLE, mesh, placements).to_local().clone()
                kinds = [spmd.V if isinstance(placement, Shard) else spmd.R for placement in placements]
                run.bins(name, having(local, kinds))
        run.bins("invariant", having(WHOLE.clone(), [spmd.I, spmd.I]))
        part = torch.tensor(float(rank + 1))
        for _ in range(2):  # the second time by the quick way, if it is one
            run.scalar("sum", having(part.clone(), [spmd.P, spmd.P]))
            run.scalar("sum along tp", having(torch.tensor(float(rank % 2 + 1)), [spmd.R, spmd.P]))
            run.scalar("replicated", having(torch.tensor(5.0), [spmd.R, spmd.I]), reduce="max")
            run.scalar("varying", having(part.clone(), [spmd.V, spmd.V]), reduce="max")
        for call in (
            lambda: run.bins("partial bins", having(part.clone(), [spmd.P, spmd.R])),
            lambda: run.scalar("partial maximum", having(part.clone(), [spmd.P, spmd.R]), reduce="max"),
        ):
            try:
                call()
            except TrackerTypeError as error:
                errors.append(str(error))
    return content(one), errors
