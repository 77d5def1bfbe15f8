"""The scalar state on the device, and what compiled code writes to it: without a sync, and for few launches."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from d9d_tracker.series.series import VALUE_LANE, Reduction
from d9d_tracker.tracing import is_transformed, mark_static
from d9d_tracker_kernels.lanes import COUNT, INITIAL, LANES, LAST, NEGATED_MIN, SUM, WEIGHT
from d9d_tracker_kernels.scalars import merge_scalars_

from .host_scalars import HostScalars
from .places import Target
from .vectors import spans

Number = torch.Tensor | float
Arange = Callable[..., Any]

_ADDED = (0.0, 1.0, 1.0, 0.0, 0.0, 0.0)  # by any value to the lanes that hold no value


class ScalarBank:
    """The device buffers of all scalar series.

    Attributes:
        current: State of the step so far, float64 of shape ``[LANES, slots + 1]``; on a CPU the lanes of a slot are
            together. In the last column lands what an indexed write, which cannot be left out, has no slot for.
        window: States of the finished steps, float64 of shape ``[rows, LANES, slots + 1]``. Initial where a slot
            is not in use, so that a series that comes later has nothing in rows before it.
        step: The current step for kernels to read, int64 of shape ``[1]``.
        places: int64 of shape ``[slots]``, for those who know the slot: place k is slot k.
        constants: What traced code reads besides: the slot and the lane of each cell, and what any value adds.
        host: What eager code on a CPU writes by, and steps end by; None if the bank is on a GPU.
    """

    def __init__(self, rows: int, slots: int, device: torch.device):
        slots += 1
        self.places = torch.arange(slots - 1, device=device)
        self._initial = torch.tensor(INITIAL, dtype=torch.float64, device=device)[:, None].repeat(1, slots)
        if device.type == "cpu":  # a step touches few lines of the cache, and ends by a copy of one stretch
            self._initial = self._initial.t().contiguous().t()
        self._added = torch.tensor(_ADDED, dtype=torch.float64, device=device)[:, None].contiguous()
        self.current = self._initial.clone()
        size, strides = (rows, LANES, slots), (LANES * slots, *self._initial.stride())
        self.window = torch.empty_strided(size, strides, dtype=torch.float64, device=device).copy_(self._initial)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.host = HostScalars(self.current, self.window, self._initial, self.step) if device.type == "cpu" else None
        self._lane = torch.arange(LANES, device=device)[:, None].contiguous()
        self._slot = torch.arange(slots, device=device).repeat(LANES, 1)  # one shape with the bank, to be one kernel
        self.constants = () if device.type == "cpu" else (self._slot, self._lane, self._added)
        for tensor in (self.current, self._lane, self._slot, self._added):
            mark_static(tensor)

    def write(self, target: Target, values: list[Number], reduce: Reduction, weight: Number | None) -> None:
        """Merge one value into each of several slots.

        Args:
            target: Distinct places, of series with the same reduction.
            values: One number or one-element tensor each, tensors on the device of the bank.
            reduce: The reduction of the series.
            weight: Weight of all the values in a mean, a number or a one-element tensor on that device; 1 if None.
        """
        at, places, _ = target
        is_traced = torch.compiler.is_compiling()
        if is_traced:
            values = [self._traced(value) for value in values]
            weight = None if weight is None else self._traced(weight)
        if is_traced and not is_transformed():  # torch.func lets nothing but an opaque op write to the buffers
            arange = functools.partial(torch.arange, device=places.device)
            write(self.current, places, self.constants, at, values, VALUE_LANE[reduce], weight, arange)
        else:
            tensors = [(s, v) for s, v in zip(at, values, strict=True) if isinstance(v, torch.Tensor)]
            numbers = [(s, float(v)) for s, v in zip(at, values, strict=True) if not isinstance(v, torch.Tensor)]
            merge_scalars_(
                self.current,
                places,
                [slot for slot, _ in tensors] + [slot for slot, _ in numbers],
                [value for _, value in tensors],
                [value for _, value in numbers],
                VALUE_LANE[reduce],
                weight if isinstance(weight, torch.Tensor) else None,
                1.0 if weight is None or isinstance(weight, torch.Tensor) else float(weight),
            )

    def effect_arguments(
        self, at: list[int], values: list[Number], reduce: Reduction, weight: Number | None
    ) -> tuple[list[int], list[torch.Tensor], int, torch.Tensor | None]:
        """Return what the operator takes that writes with an effect, for places and values: see effects.py."""
        made = [self._as_it_is(value) for value in values]
        return at, made, VALUE_LANE[reduce], None if weight is None else self._as_it_is(weight)

    def _as_it_is(self, value: Number) -> torch.Tensor:
        if isinstance(value, torch.Tensor) and value.device != self.current.device:  # one that may have no float64
            return value.detach() if torch.is_grad_enabled() else value
        return self._traced(value)

    def _traced(self, value: Number) -> torch.Tensor:
        if isinstance(value, torch.Tensor):
            return as_float64(value, value.dim(), torch.is_grad_enabled())
        return self.current.new_zeros(()) + value  # one from outside would be guarded by its value, in Python

    def file(self, row: int, slots: int) -> None:
        """Put the state of the used slots away as a row of the window; ``begin`` then starts the next step."""
        self.window[row, :, :slots].copy_(self.current[:, :slots])

    def begin(self, slots: int, step: int) -> None:
        """Start a step: forget everything merged so far in the used slots."""
        from d9d_tracker_kernels.scalar_kernels import begin_step  # needs triton, which a CPU has no use for

        begin_step(self.current, slots, self.step, step)

    def reset(self) -> None:
        """Forget everything, also which slots are in use."""
        self.current.copy_(self._initial)
        self.window.copy_(self._initial)
        if self.host is not None:
            self.host.known.clear()


def as_float64(value: Any, dimensions: int, detach: bool) -> Any:
    """Return a tensor of one element, or what stands for one in a graph, as a number that is nobody's else."""
    value = value.detach() if detach else value
    return value.sum(dtype=torch.float64) if dimensions else value.to(torch.float64, copy=True)


def write(
    current: Any, places: Any, constants: Any, at: list[int], values: list[Any], lane: int, weight: Any, arange: Arange
) -> None:
    """Merge float64 numbers of distinct series, by arithmetic that a compiler fuses: tensors, or what stands for them.

    Args:
        current: See ``ScalarBank``.
        places: Which slot each place means.
        constants: That of the bank.
        at: A place for each value.
        values: The values.
        lane: The lane of the value.
        weight: The weight of all, if they have one.
        arange: Makes a range where the bank is.
    """
    if constants:
        _write_whole(current, places, constants, at, values, lane, weight, arange)
    else:
        _write_cells(current, places, at, values, lane, weight, arange)


def _write_whole(
    current: Any, places: Any, constants: Any, at: list[int], values: list[Any], lane: int, weight: Any, arange: Arange
) -> None:
    # Selecting by comparisons over the whole bank, and not by an index, lets Inductor fuse the writes of a graph
    # into one kernel of a GPU. It does so only while each write reads the state before it a single time.
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


def _write_cells(
    current: Any, places: Any, at: list[int], values: list[Any], lane: int, weight: Any, arange: Arange
) -> None:
    # A CPU would work through the whole bank for each write; an indexed write touches its own cells only.
    # Every tensor from outside costs each call its checks, so that constants are made here.
    added_lanes = arange(COUNT + 1)[:, None]
    for first, last in spans(sorted(at)):
        place = arange(first, last + 1)
        slot = places[place]
        value = _spread(place, first, last, at, values)
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


def _spread(place: Any, first: int, last: int, at: list[int], values: list[Any]) -> Any:
    """Return, in a shape that broadcasts to ``place``, the value of each place. Not torch.stack: it would be a loop."""
    within = [(one, value) for one, value in zip(at, values, strict=True) if first <= one <= last]
    spread = within[0][1]
    for one, other in within[1:]:
        spread = torch.where(place == one, other, spread)
    return spread


def _weighted(value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the product, and zero where the weight is: see ``merge_number``."""
    return torch.where(weight == 0, 0.0, value * weight)
