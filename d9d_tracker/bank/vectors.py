"""Numbers of many series at once, as a vector: in a number of launches that does not hang on how many they are."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from d9d_tracker_kernels.lanes import COUNT, MAX


def merge_vector(
    current: torch.Tensor, slots: torch.Tensor, values: torch.Tensor, is_max: bool, is_on: torch.Tensor | None
) -> None:
    """Merge into lanes, of shape ``[LANES, columns]``. Several may go nowhere, which is the last column."""
    ones = torch.ones_like(values)
    added = torch.stack((torch.zeros_like(values) if is_max else values, ones, ones))  # SUM, WEIGHT and COUNT
    if is_max:
        before = current[MAX, slots]
        largest = torch.maximum(before, values)
        current[MAX, slots] = largest if is_on is None else torch.where(is_on, largest, before)
    if is_on is not None:
        added = torch.where(is_on, added, 0.0)
    current[: COUNT + 1].index_add_(1, slots, added)


def constant(numbers: Sequence[float], device: torch.device) -> torch.Tensor:
    """Return float64 of shape ``[numbers]`` without a copy to the device: of each stretch of equal ones, one fill."""
    stretches = [(number, len(list(same))) for number, same in itertools.groupby(numbers)]
    return joined([torch.full((n,), float(one), dtype=torch.float64, device=device) for one, n in stretches])


def index(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return int64 of shape ``[numbers]`` without a copy to the device: of each span, one range."""
    return joined([torch.arange(first, last + 1, device=device) for first, last in spans(numbers)])


def spans(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and the last number of every stretch in which each is one more than the one before."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def joined(parts: list[Any]) -> Any:
    """Return vectors, or what stands for them in a graph, one after the other."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
