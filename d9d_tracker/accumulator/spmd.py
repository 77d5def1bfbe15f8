"""What a rank logs of a tensor that ``spmd_types`` has typed: as of a ``DTensor`` with the same placements.

The package (https://github.com/meta-pytorch/spmd_types, seen at 0.3.1) gives a plain tensor a type on each axis of the
mesh: R and I, the same on all ranks of the axis; V, and sharded as a kind of it, each its own; P, a part of a sum.
"""

import sys
from typing import Any

import torch
import torch.distributed as dist

from d9d_tracker.series.reductions import Reduction


def local_types(value: torch.Tensor) -> dict[Any, str]:
    """Return R, I, V or P of each axis of the mesh; nothing for a tensor without types, and in compiled code.

    Args:
        value: A tensor.
    """
    if torch.compiler.is_compiling():
        return {}
    spmd_types = sys.modules.get("spmd_types")  # whoever has typed a tensor has imported it
    if spmd_types is None:
        return {}
    return {axis: kind.name for axis, kind in spmd_types.get_local_type(value).items()}


def typed_scalar(value: torch.Tensor, reduce: Reduction) -> torch.Tensor:
    """Return what this rank logs of a number; see ``local_scalar``.

    Args:
        value: One element.
        reduce: The reduction of the series.

    Raises:
        TypeError: If it is a part of a sum, which the reduction does not make whole.
    """
    for axis, kind in local_types(value).items():
        if kind == "P":
            if reduce not in ("mean", "sum"):
                raise TypeError(f"a series with reduce={reduce!r} cannot make a whole of parts of a sum")
            value = value.detach().to(torch.float64) * axis.size()
    return value


def typed_share(values: torch.Tensor) -> bool:
    """Return whether this rank counts a population: of ranks that hold the same, the first does.

    Args:
        values: The population.

    Raises:
        TypeError: If it is a part of a sum: no rank holds it before a reduction.
    """
    types = local_types(values)
    if "P" in types.values():
        raise TypeError("the values are parts of a sum")
    rank = dist.get_rank() if types else 0
    return all(
        rank // stride % size == 0
        for axis, kind in types.items()
        if kind in ("R", "I")
        for size, stride in axis.layout.sizes_and_strides
    )
