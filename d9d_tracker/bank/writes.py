"""What compiled code writes to the scalar state, as arithmetic of tensors, or of what stands for them in a graph."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from d9d_tracker_kernels.lanes import COUNT, LAST, NEGATED_MIN, SUM, WEIGHT

from .vectors import joined, spans

Arange = Callable[..., Any]
Stack = Callable[[list[Any], Arange], Any]

_CHOICES = 16  # two registers of float64 with AVX-512


def as_float64(value: Any, dimensions: int, detach: bool) -> Any:
    """Return a tensor of one element, or what stands for one in a graph, as a number that is nobody's else."""
    value = value.detach() if detach else value
    return value.sum(dtype=torch.float64) if dimensions else value.to(torch.float64, copy=True)


def write_whole(
    current: Any, places: Any, at: list[int], values: list[Any], lane: int, weight: Any, arange: Arange, constants: Any
) -> None:
    """Merge numbers of distinct series on a GPU, by arithmetic that a compiler fuses.

    Selecting by comparisons over the whole bank, and not by an index, lets Inductor fuse the writes of a graph into
    one kernel. It does so only while each write reads the state before it a single time.

    Args:
        current: See ``ScalarBank``.
        places: Which slot each place means.
        at: A place for each value.
        values: Float64 tensors without dimensions, or what stands for them in a graph, as for the rest.
        lane: The lane of the value.
        weight: The weight of all, if they have one.
        arange: Makes a range where the bank is.
        constants: Those of the bank.
    """
    slot, lanes, added = constants
    masks = [slot == places[arange(p, p + 1)] for p in at]
    value = values[0]
    for mask, other in zip(masks[1:], values[1:], strict=True):
        value = torch.where(mask, other, value)
    chosen = functools.reduce(torch.logical_or, masks)
    if weight is not None:
        value = _weighted(value, weight)
        added = torch.where(lanes == WEIGHT, weight, added)
    cell = chosen & (lanes == lane)
    counted = torch.where(chosen, added, 0.0)
    if lane == SUM:
        merged = current + torch.where(cell, value, counted)
    elif lane == LAST:
        merged = torch.where(cell, value, current) + counted
    else:
        extreme = -value if lane == NEGATED_MIN else value
        merged = torch.maximum(current, torch.where(cell, extreme, -math.inf)) + counted
    current.copy_(merged)


def write_cells(
    current: Any, places: Any, at: list[int], values: list[Any], lane: int, weight: Any, arange: Arange, stack: Stack
) -> None:
    """Merge numbers of distinct series on a CPU, by an index: it would work through the whole bank for each write.

    Every tensor from outside costs each call its checks, so that constants are made here.

    Args:
        current: See ``write_whole``, also for what follows.
        places: Which slot each place means.
        at: A place for each value.
        values: What ``stack`` makes a float64 vector of.
        lane: The lane of the value.
        weight: The weight of all, if they have one.
        arange: Makes a range where the bank is.
        stack: Takes values, and ``arange``.
    """
    in_order = sorted(at)
    added_lanes = arange(COUNT + 1)[:, None]
    for first, last in spans(in_order):
        slot = places[arange(first, last + 1)]
        value = stack([values[at.index(place)] for place in in_order if first <= place <= last], arange)
        added = torch.where(added_lanes == SUM, 0.0, current.new_ones(()))
        if weight is not None:
            value = _weighted(value, weight)
            added = torch.where(added_lanes == WEIGHT, weight, added)
        if lane == SUM:
            added = torch.where(added_lanes == SUM, value, added)
        else:
            row = torch.full_like(slot, lane)
            if lane != LAST:
                value = torch.maximum(current[row, slot], -value if lane == NEGATED_MIN else value)
            current.index_put_((row, slot), value)
        current.index_put_((added_lanes, slot), added, accumulate=True)


def stacked(values: list[Any], arange: Arange) -> Any:
    """Return numbers without dimensions as a vector.

    Not ``torch.stack``: Inductor makes a loop of each number then, and compares each loop with every other. A loop
    that chooses among all the numbers for each of its elements grows by their square. So some choose among some.
    """
    if not values[1:]:  # len would be one more guard of compiled code
        return values[0].reshape(1)
    place = arange(min(len(values), _CHOICES))
    masks = [place == index for index in range(1, min(len(values), _CHOICES))]
    parts: list[Any] = []
    for first in range(0, len(values), _CHOICES):
        some = values[first : first + _CHOICES]
        part = some[0]
        for mask, other in zip(masks, some[1:], strict=False):
            part = torch.where(mask, other, part)
        parts.append(part[: len(some)] if len(some) > 1 else part.reshape(1))
    return joined(parts)


def _weighted(value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the product, and zero where the weight is: see ``merge_number``."""
    return torch.where(weight == 0, 0.0, value * weight)
