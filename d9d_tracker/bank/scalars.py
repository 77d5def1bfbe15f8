"""The scalar state on the device."""

import functools

import torch

from d9d_tracker.series.series import VALUE_LANE, Reduction
from d9d_tracker.tracing import is_transformed, mark_static
from d9d_tracker_kernels.lanes import INITIAL, LANES
from d9d_tracker_kernels.scalars import merge_scalars_

from .host_scalars import HostScalars
from .places import Target
from .writes import as_float64, stacked, write_cells, write_whole

Number = torch.Tensor | float

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
            parts = (self.current, places, at, values, VALUE_LANE[reduce], weight, arange)
            if self.constants:
                write_whole(*parts, self.constants)
            else:
                write_cells(*parts, stacked)
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
