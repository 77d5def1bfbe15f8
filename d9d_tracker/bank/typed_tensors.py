"""What a rank logs of a tensor that ``spmd_types`` has typed: as of a ``DTensor`` with the same placements.

The package (https://github.com/meta-pytorch/spmd_types, seen at 0.3.1) gives a plain tensor a type on each axis of the
mesh: R and I, the same on all ranks of the axis; V, and sharded as a kind of it, each its own; P, a part of a sum.
"""

import sys
from typing import Any

import torch
import torch.distributed as dist

from d9d_tracker.series.series import Reduction

from .placement import widened


def local_types(value: torch.Tensor) -> dict[Any, str]:
    """Return R, I, V or P of each axis of the mesh; nothing for a tensor without types, and in compiled code."""
    if torch.compiler.is_compiling() or "spmd_types" not in sys.modules:  # whoever has typed a tensor has imported it
        return {}
    spmd_types: Any = sys.modules["spmd_types"]
    return {axis: kind.name for axis, kind in spmd_types.get_local_type(value).items()}


def typed_scalar(value: torch.Tensor, reduce: Reduction) -> torch.Tensor:
    """Return what this rank logs of a number, as ``local_scalar`` of a ``DTensor``."""
    for axis, kind in local_types(value).items():
        if kind == "P":
            if reduce not in ("mean", "sum"):
                raise TypeError
            value = widened(value.detach()) * axis.size()
    return value


def typed_share(values: torch.Tensor) -> bool:
    """Return whether this rank counts a population: of ranks that hold the same, the first does; as ``local_share``."""
    types = local_types(values)
    if "P" in types.values():
        raise TypeError
    rank = dist.get_rank() if types else 0
    return all(
        rank // stride % size == 0
        for axis, kind in types.items()
        if kind in ("R", "I")
        for size, stride in axis.layout.sizes_and_strides
    )
