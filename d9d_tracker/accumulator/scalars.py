"""Scalar state: lanes that any number of values merge into, on the device, without a sync.

A slot's state is six numbers, whatever its reduction, so that the initial state is one constant and a series can appear
at any time without a write to the device:

    SUM, WEIGHT, COUNT     add up
    MAX, NEGATED_MIN       take the larger
    LAST                   takes the newer

A value is merged into WEIGHT, COUNT and the one lane that the reduction of its series reads; the others stay initial.
NaN runs through all of them as it does through eager arithmetic.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch

from d9d_tracker.tracing import is_transformed, mark_static

from .arguments import Number
from .registry import Reduction, ScalarSeries

SUM, WEIGHT, COUNT, MAX, NEGATED_MIN, LAST = range(6)
LANES = 6
_INITIAL = (0.0, 0.0, 0.0, -math.inf, -math.inf, 0.0)
_ADDED = (0.0, 1.0, 1.0, 0.0, 0.0, 0.0)  # by any value to the lanes that hold no value
_VALUE_LANE: dict[Reduction, int] = {"mean": SUM, "sum": SUM, "min": NEGATED_MIN, "max": MAX, "last": LAST}


class ScalarBank:
    """The device buffers of all scalar series.

    Attributes:
        current: State of the step so far, float64 of shape ``[LANES, slots + 1]``. In the last column lands what an
            indexed write, which cannot be left out, has no slot for.
        window: States of the finished steps, float64 of shape ``[rows, LANES, slots + 1]``.
    """

    def __init__(self, rows: int, slots: int, device: torch.device):
        slots += 1
        self._initial = torch.tensor(_INITIAL, dtype=torch.float64, device=device)[:, None].repeat(1, slots)
        self._added = torch.tensor(_ADDED, dtype=torch.float64, device=device)[:, None].contiguous()
        self.current = self._initial.clone()
        self.window = self._initial.repeat(rows, 1, 1)
        self._rows = self.window.unbind()
        self._lane = torch.arange(LANES, device=device)[:, None].contiguous()
        self._slot = torch.arange(slots, device=device).repeat(LANES, 1)  # one shape with the bank, to be one kernel
        self._zero = torch.zeros((), dtype=torch.float64, device=device)
        for tensor in (self.current, self._lane, self._slot, self._added, self._zero):
            mark_static(tensor)

    def write(
        self,
        at: list[int],
        values: list[Number],
        reduce: Reduction,
        weight: Number | None,
        places: torch.Tensor | None = None,
    ) -> None:
        """Merge one value into each of several slots.

        Args:
            at: Distinct places in the table, of series with the same reduction; their slots without one.
            values: One number or one-element tensor each, tensors on the device of the bank.
            reduce: The reduction of the series.
            weight: Weight of all the values in a mean, a number or a one-element tensor on that device; 1 if None.
            places: The table: which slot each place means. Traced code has one.
        """
        is_traced = torch.compiler.is_compiling()
        if is_traced and places is not None and not _is_transformed():
            self._write_traced(places, at, values, reduce, weight)
        else:
            if is_traced:  # inside torch.func, which lets nothing but an opaque op write to the buffers
                values = [self._traced(value) for value in values]
                weight = None if weight is None else self._traced(weight)
            tensors = [(s, v) for s, v in zip(at, values, strict=True) if isinstance(v, torch.Tensor)]
            numbers = [(s, float(v)) for s, v in zip(at, values, strict=True) if not isinstance(v, torch.Tensor)]
            torch.ops.d9d_tracker.merge_scalars_(
                self.current,
                places,
                [slot for slot, _ in tensors] + [slot for slot, _ in numbers],
                [value for _, value in tensors],
                [value for _, value in numbers],
                _VALUE_LANE[reduce],
                weight if isinstance(weight, torch.Tensor) else None,
                1.0 if weight is None or isinstance(weight, torch.Tensor) else float(weight),
            )

    def effect_arguments(
        self, at: list[int], values: list[Number], reduce: Reduction, weight: Number | None
    ) -> tuple[list[int], list[torch.Tensor], int, torch.Tensor | None]:
        """Return, under trace, what the operator takes that writes with an effect: see effects.py.

        Args:
            at: See ``write``.
            values: See ``write``.
            reduce: See ``write``.
            weight: See ``write``.
        """
        factor = None if weight is None else self._traced(weight)
        return at, [self._traced(value) for value in values], _VALUE_LANE[reduce], factor

    def _write_traced(
        self, places: torch.Tensor, at: list[int], values: list[Number], reduce: Reduction, weight: Number | None
    ) -> None:
        traced = [self._traced(value) for value in values]
        factor = None if weight is None else self._traced(weight)
        if self.current.device.type == "cpu":
            self._write_cells(places, at, traced, _VALUE_LANE[reduce], factor)
        else:
            self._write_whole(places, at, traced, _VALUE_LANE[reduce], factor)

    def _write_whole(
        self, places: torch.Tensor, at: list[int], values: list[torch.Tensor], lane: int, weight: torch.Tensor | None
    ) -> None:
        # Selecting by comparisons over the whole bank, and not by an index, lets Inductor fuse the writes of a graph
        # into one kernel of a GPU. It does so only while each write reads the state before it a single time.
        masks = [self._slot == places[torch.arange(p, p + 1, device=places.device)] for p in at]
        value = values[0]
        for mask, other in zip(masks[1:], values[1:], strict=True):
            value = torch.where(mask, other, value)
        chosen = functools.reduce(torch.logical_or, masks)
        added = self._added
        if weight is not None:
            value = _weighted(value, weight)
            added = torch.where(self._lane == WEIGHT, weight, added)
        cell = chosen & (self._lane == lane)
        counted = torch.where(chosen, added, 0.0)
        if lane == SUM:
            merged = self.current + torch.where(cell, value, counted)
        elif lane == LAST:
            merged = torch.where(cell, value, self.current) + counted
        else:
            extreme = -value if lane == NEGATED_MIN else value
            merged = torch.maximum(self.current, torch.where(cell, extreme, -math.inf)) + counted
        self.current.copy_(merged)

    def _write_cells(
        self, places: torch.Tensor, at: list[int], values: list[torch.Tensor], lane: int, weight: torch.Tensor | None
    ) -> None:
        # A CPU would work through the whole bank for each write; an indexed write touches its own cells only.
        # Every tensor from outside costs each call its checks, so that constants are made here.
        added_lanes = torch.arange(COUNT + 1, device=places.device)[:, None]
        for first, last in _spans(at):
            place = torch.arange(first, last + 1, device=places.device)
            slot = places[place]
            value = _spread(place, at, values)
            added = torch.where(added_lanes == SUM, 0.0, self.current.new_ones(()))
            if weight is not None:
                value = _weighted(value, weight)
                added = torch.where(added_lanes == WEIGHT, weight, added)
            if lane == SUM:
                added = torch.where(added_lanes == SUM, value, added)
            else:
                row = torch.full_like(slot, lane)
                if lane != LAST:
                    value = torch.maximum(self.current[row, slot], -value if lane == NEGATED_MIN else value)
                self.current.index_put_((row, slot), value)
            self.current.index_put_((added_lanes, slot), added, accumulate=True)

    def _traced(self, value: Number) -> torch.Tensor:
        if isinstance(value, torch.Tensor):
            value = value.detach() if torch.is_grad_enabled() else value
            return value.sum(dtype=torch.float64) if value.dim() else value.to(torch.float64)
        return self._zero + value

    def file(self, row: int) -> None:
        """Put the state of the step away as a row of the window; ``reset`` then starts the next step.

        Args:
            row: Index of the row.
        """
        self._rows[row].copy_(self.current)

    def reset(self) -> None:
        """Start a step: forget everything merged so far."""
        self.current.copy_(self._initial)

    def clear_rows(self, rows: int) -> None:
        """Empty the first rows of the window.

        Args:
            rows: How many.
        """
        self.window[:rows].copy_(self._initial)


def _weighted(value: torch.Tensor, weight: torch.Tensor | float) -> torch.Tensor:
    """Return the product, and zero where the weight is: a micro-batch without tokens has a mean of NaN, and no say."""
    if isinstance(weight, torch.Tensor):
        return torch.where(weight == 0, 0.0, value * weight)
    return value * weight if weight else torch.zeros_like(value)


def _spread(place: torch.Tensor, at: list[int], values: list[torch.Tensor]) -> torch.Tensor:
    """Return, in a shape that broadcasts to ``place``, the value of each place. Not torch.stack: it would be a loop."""
    value = values[0]
    for one, other in zip(at[1:], values[1:], strict=True):
        value = torch.where(place == one, other, value)
    return value


def _spans(at: list[int]) -> list[tuple[int, int]]:
    """Return the first and the last number of every unbroken span."""
    spans: list[tuple[int, int]] = []
    for slot in sorted(at):
        if spans and spans[-1][1] == slot - 1:
            spans[-1] = (spans[-1][0], slot)
        else:
            spans.append((slot, slot))
    return spans


@torch.compiler.assume_constant_result
def _is_transformed() -> bool:
    return is_transformed()


# Eager writes go through one opaque op: a dispatch mode around the user's forward (selective activation checkpointing)
# then sees one mutation that it must not replay, and not arithmetic that it would cache and hand out in wrong order.
_library = torch.library.Library("d9d_tracker", "FRAGMENT")
_library.define(
    "merge_scalars_(Tensor(a!) current, Tensor? places, int[] at, Tensor[] tensors, float[] numbers, int lane, "
    "Tensor? weight_tensor, float weight) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _merge_scalars(
    current: torch.Tensor,
    places: torch.Tensor | None,
    at: list[int],
    tensors: list[torch.Tensor],
    numbers: list[float],
    lane: int,
    weight_tensor: torch.Tensor | None,
    weight: float,
) -> None:
    values = [tensor.detach().reshape(1).to(current.dtype) for tensor in tensors]
    values += [torch.full((1,), number, dtype=current.dtype, device=current.device) for number in numbers]
    weights = 1.0 * weight if weight_tensor is None else weight_tensor.detach().reshape(()).to(current.dtype)
    pairs = sorted(zip(at, values, strict=True), key=lambda pair: pair[0])
    is_weighted = weight_tensor is not None or weight != 1.0
    if places is not None and places.is_cuda:
        slots = torch.cat([places[place : place + 1] for place, _ in pairs])
        _merge_at(current, slots, torch.cat([value for _, value in pairs]), lane, weights, is_weighted)
        return
    if places is not None:
        table = places.numpy()
        pairs = sorted(((int(table[place]), value) for place, value in pairs), key=lambda pair: pair[0])
        pairs = [(slot, value) for slot, value in pairs if slot >= 0]
    spans = _spans([slot for slot, _ in pairs])
    start = 0
    for first, last in spans:
        state = current[:, first : last + 1]
        value = torch.cat([value for _, value in pairs[start : start + state.shape[1]]])
        start += state.shape[1]
        state[WEIGHT].add_(weights)
        state[COUNT].add_(1.0)
        if lane == SUM:
            state[SUM].add_(_weighted(value, weights) if is_weighted else value)
        elif lane == LAST:
            state[LAST].copy_(value)
        else:
            torch.maximum(state[lane], -value if lane == NEGATED_MIN else value, out=state[lane])


def _merge_at(
    current: torch.Tensor,
    slots: torch.Tensor,
    value: torch.Tensor,
    lane: int,
    weights: torch.Tensor | float,
    is_weighted: bool,
) -> None:
    """Merge values into slots that the device alone knows; -1 is the last column."""
    one = torch.ones_like(value)
    current[WEIGHT].index_put_((slots,), one * weights, accumulate=True)
    current[COUNT].index_put_((slots,), one, accumulate=True)
    if lane == SUM:
        current[SUM].index_put_((slots,), _weighted(value, weights) if is_weighted else value, accumulate=True)
        return
    if lane != LAST:
        value = torch.maximum(current[lane][slots], -value if lane == NEGATED_MIN else value)
    current[lane].index_put_((slots,), value)


_library.impl("merge_scalars_", _merge_scalars, "CPU")
_library.impl("merge_scalars_", _merge_scalars, "CUDA")
_library.impl("merge_scalars_", lambda *_: None, "Meta")


def merge_lanes(older: np.ndarray, newer: np.ndarray) -> np.ndarray:
    """Merge two states of the same slots.

    Args:
        older: Lanes, float64 of shape ``[LANES, slots]``.
        newer: Lanes that came after, of the same shape.

    Returns:
        The lanes that all the values would have given, of the same shape.
    """
    merged = np.empty_like(older)
    merged[: COUNT + 1] = older[: COUNT + 1] + newer[: COUNT + 1]
    merged[MAX : NEGATED_MIN + 1] = np.maximum(older[MAX : NEGATED_MIN + 1], newer[MAX : NEGATED_MIN + 1])
    merged[LAST] = np.where(newer[COUNT] > 0, newer[LAST], older[LAST])
    return merged


def finalize(lanes: np.ndarray, scalars: Sequence[ScalarSeries]) -> np.ndarray:
    """Turn the states of slots into the values of their points.

    Args:
        lanes: Lanes, float64 of shape ``[rows, LANES, slots]``.
        scalars: The series of each slot.

    Returns:
        Values, float64 of shape ``[rows, slots]``; meaningless where no value was merged in.
    """
    reductions: list[Reduction] = [series.reduce for series in scalars]
    values = lanes[:, [_VALUE_LANE[reduce] for reduce in reductions], range(len(reductions))]
    chosen = np.array(reductions, dtype=str)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = values / lanes[:, WEIGHT]
        values = np.select([chosen == "mean", chosen == "min"], [means, -values], values)
        for slot, series in enumerate(scalars):
            if series.root != 1.0:
                values[:, slot] **= 1 / series.root
    return values
