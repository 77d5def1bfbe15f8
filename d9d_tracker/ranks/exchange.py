"""Plain values from every rank to every rank: as JSON, because nobody should have to unpickle what a network sends."""

import json
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from .finish import finish


def exchange(value: Any, group: dist.ProcessGroup) -> list[Any]:
    """Return the values of all ranks, in their order. Every rank must call it.

    Args:
        value: Plain JSON values.
        group: A gloo group.

    Raises:
        RuntimeError: If a rank does not take part within the group's timeout.
    """
    return [json.loads(data.tobytes()) for data in exchange_bytes(json.dumps(value).encode(), group)]


def exchange_bytes(data: bytes, group: dist.ProcessGroup) -> list[np.ndarray]:
    """Return the bytes of all ranks, in their order. Every rank must call it.

    Args:
        data: The bytes of this rank.
        group: A gloo group.

    Returns:
        One uint8 array of one dimension a rank.
    """
    sizes = [torch.zeros(1, dtype=torch.int64, device="cpu") for _ in range(dist.get_world_size(group))]
    finish(dist.all_gather(sizes, torch.tensor([len(data)], device="cpu"), group=group, async_op=True))
    longest = max(1, *(int(size) for size in sizes))
    padded = as_tensor(data, longest)
    parts = [torch.empty_like(padded) for _ in sizes]
    finish(dist.all_gather(parts, padded, group=group, async_op=True))
    return [part.numpy()[: int(size)] for part, size in zip(parts, sizes, strict=True)]


def as_tensor(data: bytes, length: int) -> torch.Tensor:
    """Return bytes as uint8 of shape ``[length]``, with zeros behind them.

    Args:
        data: The bytes.
        length: At least as many.
    """
    return torch.from_numpy(np.frombuffer(data.ljust(length, b"\0"), dtype=np.uint8).copy())
