"""Which elements of a distributed tensor this rank is to count."""

import torch
from torch.distributed.tensor import DTensor


def local_share(values: DTensor) -> tuple[torch.Tensor, bool]:
    """Return the local shard of a distributed tensor, and whether this rank counts it.

    No communication takes place. An element that several ranks of the tensor's mesh hold, because a dimension of the
    mesh replicates it, is counted by the first rank of that dimension alone.

    Args:
        values: The distributed tensor.

    Returns:
        The local shard, possibly empty, and whether it is to be counted here.

    Raises:
        TypeError: If the values are partial: no rank holds them before a reduction.
    """
    coordinates = values.device_mesh.get_coordinate()
    counts = coordinates is not None
    for dimension, placement in enumerate(values.placements):
        if placement.is_partial():
            raise TypeError(
                "the values are partial: they exist only after a reduction across ranks; reduce them first, with "
                ".redistribute(placements=[Replicate()]) or .full_tensor(), on every rank of the mesh"
            )
        if placement.is_replicate() and coordinates is not None:
            counts = counts and coordinates[dimension] == 0
    return values.to_local(), counts


def local_scalar(value: DTensor) -> torch.Tensor:
    """Return the local copy of a replicated one-element tensor.

    Args:
        value: The distributed tensor.

    Raises:
        TypeError: If not every rank holds the whole value: bringing it together is a collective, which is the caller's
            to place.
    """
    if not all(placement.is_replicate() for placement in value.placements):
        raise TypeError(
            f"a distributed scalar must be replicated, not {value.placements}; bring it together first with "
            ".full_tensor(), on every rank of the mesh"
        )
    return value.to_local()
