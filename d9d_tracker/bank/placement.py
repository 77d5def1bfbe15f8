"""What a rank logs of a distributed tensor, without communication: the ranks' parts meet with their windows."""

import math
import sys
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import TypeIs

from d9d_tracker.series.series import Reduction
from d9d_tracker_kernels.device import GPU

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_distributed(value: Any) -> "TypeIs[DTensor]":
    """Tell whether a value is a ``DTensor``."""
    # Almost all are plain tensors; and without the module, which takes most of a second to import, there is none.
    if type(value) is torch.Tensor or "torch.distributed.tensor" not in sys.modules:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def is_partial(value: Any) -> bool:
    """Tell whether no rank holds a value: it exists only after a reduction across ranks."""
    return is_distributed(value) and any(placement.is_partial() for placement in value.placements)


def local_shard(value: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return what this rank holds of a tensor, not partial, and on how many ranks' shards it is spread, 1 if plain.

    The mean over the ranks of so many times a sum over the shard is the sum over all of the tensor.
    """
    if not is_distributed(value):
        return value, 1
    # What is neither is a shard, in one of several ways that do not all say so.
    sizes = [value.device_mesh.size(index) for index, one in enumerate(value.placements) if not one.is_replicate()]
    return value.to_local(), math.prod(sizes)


def local_share(values: "DTensor") -> tuple[torch.Tensor, bool]:
    """Return this rank's shard, perhaps empty, and whether it counts it; ``TypeError`` if the values are partial.

    What several ranks of the mesh hold, because a dimension replicates it, the first of that dimension alone counts.
    """
    coordinates = values.device_mesh.get_coordinate()
    counts = coordinates is not None
    for dimension, placement in enumerate(values.placements):
        if placement.is_partial():
            raise TypeError
        if placement.is_replicate() and coordinates is not None:
            counts = counts and coordinates[dimension] == 0
    return values.to_local(), counts


def local_scalar(value: "DTensor", reduce: Reduction) -> torch.Tensor:
    """Return what this rank logs of a one-element tensor, so that the ranks' reduction makes the whole value of it.

    Of a replicated one it is the copy. Of a partial sum over n ranks it is n times the rank's part, whose mean over the
    ranks is the sum; of a partial average the part itself; of a partial minimum or maximum likewise, in a series of
    that reduction. Of a partial p-norm it is n times the p-th power: ``norm_of`` has the root, which is taken last.
    Anything else is a ``TypeError``.
    """
    local, norm = value.to_local(), norm_of(value)
    if norm != 1.0:
        local = widened(local).abs() ** norm
    for dimension, placement in enumerate(value.placements):
        if placement.is_replicate():
            continue
        kind = getattr(placement, "reduce_op", None) if placement.is_partial() else None
        if kind == "sum" and reduce in ("mean", "sum"):
            local = widened(local) * value.device_mesh.size(dimension)
        elif not ((kind == "avg" and reduce in ("mean", "sum")) or (kind in ("min", "max") and reduce == kind)):
            raise TypeError
    return local


def widened(value: torch.Tensor) -> torch.Tensor:
    """Return a number as float64, or as the widest that every device has: float32, and int64 of integers."""
    if value.device.type in ("cpu", GPU) or value.dtype == torch.float64:
        return value.to(torch.float64)
    return value.to(torch.float32 if value.is_floating_point() else torch.int64)


def norm_of(value: Any) -> float:
    """Return the p of a partial p-norm; else 1."""
    if not is_distributed(value):
        return 1.0
    # A private placement: seen in torch 2.11 to 2.15.
    norms = [getattr(placement, "norm_type", None) for placement in value.placements]
    found = [float(norm) for norm in norms if norm is not None and math.isfinite(norm)]
    return found[0] if found else 1.0
