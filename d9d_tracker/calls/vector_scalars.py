"""A vector of numbers of many series at once, in a number of launches that does not hang on how many they are."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from d9d_tracker.compiled.effects import finishes, merge_vector_with_effect
from d9d_tracker.compiled.regions import refuse_effect_here
from d9d_tracker.compiled.runs import Key
from d9d_tracker.compiled.slots import token_of
from d9d_tracker.errors import TrackerValueError, fail
from d9d_tracker.lazy_torch import assume_constant_result
from d9d_tracker.series.registry import ContextItems, ScalarSeries
from d9d_tracker_kernels import COUNT, MAX

from .calls import Calls

Finish = Callable[..., torch.Tensor]
MakeSeries = Callable[[str, ContextItems], ScalarSeries]

_makers: dict[str, MakeSeries] = {}
_finishes: dict[str, Finish] = {}


class VectorScalars:
    """Merges vectors into series that are named by keys.

    Args:
        run: The run.
        make: Returns the series of a key and a context. Its reduction is ``"mean"`` or ``"max"``.
        name: A name of this object, unique in the process.
        finish: Makes the numbers, float64 of shape ``[keys]``, of what is known of the keys, the vectors and the scale,
            both as float64.
    """

    def __init__(self, run: Calls, make: MakeSeries, name: str, finish: Finish):
        self._run = run
        self._make = make
        self._name = name
        self._slots: dict[tuple[ContextItems, tuple[str, ...]], torch.Tensor] = {}
        _makers[name], _finishes[name], self._finish = make, finish, finish

    def close(self) -> None:
        """Forget what makes the series; nothing is merged any more."""
        _makers.pop(self._name, None)
        _finishes.pop(self._name, None)

    def merge(
        self,
        keys: Sequence[str],
        vectors: list[torch.Tensor],
        context: dict[str, str] | None,
        every: int,
        known: tuple[Any, ...],
        scale: torch.Tensor | None,
    ) -> None:
        """Merge one number into each of several series, on the device. May be traced and captured.

        Args:
            keys: Distinct keys of series that have one reduction.
            vectors: What the numbers are made of, a vector for each of their devices and dtypes.
            context: Tags for these values alone.
            every: Merge on steps of the run that are divisible by it.
            known: Constants that ``finish`` takes besides.
            scale: Of one element, or None.

        Raises:
            TrackerValueError: If it is traced or captured, the buffers are on a GPU and a vector is not there; or if it
                is traced in a region, on a device without a bank.
        """
        run = self._run
        bank, items = run.buffers.scalars, run._items("watch", context, "global")
        device = bank.current.device
        if run.holds_places() and run.buffers.is_gpu and any(vector.device != device for vector in vectors):
            fail(TrackerValueError, f"norms on several devices, or on {vectors[0].device}, are of eager code alone")
        if not run.buffers.has_bank(vectors):
            if torch.compiler.is_compiling():
                refuse_effect_here()
                places, is_max = _places(run.key, self._name, tuple(keys), items), _is_max(self._name, keys[0])
                finish = _finish_at(self._name, known)
                merge_vector_with_effect(token_of(run.key), places, vectors, every, is_max, finish, scale)
                return
            slots, is_max = self._find(keys, items).tolist(), self._make(keys[0], items).reduce == "max"
            finish = functools.partial(self._finish, *known)
            run.buffers.change(run.buffers.merge_vector, slots, vectors, is_max, finish, scale)
            return
        is_on = None if every == 1 else bank.step % every == 0
        wide = [one if one is None else one.to(device, torch.float64, non_blocking=True) for one in (*vectors, scale)]
        values = self._finish(*known, wide[:-1], wide[-1])
        if run.holds_places():
            places = _places(run.key, self._name, tuple(keys), items)
            if min(places) < 0:  # none was left
                kept = [index for index, place in enumerate(places) if place >= 0]
                if not kept:
                    return
                values, places = values[_index(kept, values.device)], [places[index] for index in kept]
            slots = run.buffers.places.table[_index(places, values.device)] % bank.current.shape[1]
            _merge(bank.current, slots, values, _is_max(self._name, keys[0]), is_on)
            return
        slots = self._slots.get((items, tuple(keys)))
        if slots is None:
            slots = self._slots[items, tuple(keys)] = self._find(keys, items)
        is_max = self._make(keys[0], items).reduce == "max"
        run.buffers.change(_merge, bank.current, slots, values, is_max, is_on)

    def _find(self, keys: Sequence[str], items: ContextItems) -> torch.Tensor:
        registry, current = self._run.buffers.scalar_series, self._run.buffers.scalars.current
        slots = [registry.slot(self._make(key, items)) % current.shape[1] for key in keys]  # -1 is the last column
        with torch.inference_mode(False):
            return _index(slots, current.device)


def _merge(
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
    """Return float64 of shape ``[numbers]`` without a copy to the device: as stretches, of which there are few.

    Args:
        numbers: Some that are the same follow each other.
        device: Where it is made.
    """
    stretches: list[list[float]] = []
    for number in numbers:
        if stretches and stretches[-1][0] == number:
            stretches[-1][1] += 1
        else:
            stretches.append([number, 1])
    parts = [torch.full((int(n),), float(one), dtype=torch.float64, device=device) for one, n in stretches]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _index(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return int64 of shape ``[numbers]`` without a copy to the device: as spans, of which there are few."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number:
            spans[-1][1] += 1
        else:
            spans.append([number, number + 1])
    parts = [torch.arange(first, end, device=device) for first, end in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@assume_constant_result
def _places(key: Key, name: str, keys: tuple[str, ...], items: ContextItems) -> tuple[int, ...]:
    places = key[0].run.buffers.places
    return tuple(places.claim(_makers[name](key, items)) for key in keys)


@assume_constant_result
def _is_max(name: str, key: str) -> bool:
    return _makers[name](key, ()).reduce == "max"


@assume_constant_result
def _finish_at(name: str, known: tuple[Any, ...]) -> int:
    finishes.append(functools.partial(_finishes[name], *known))
    return len(finishes) - 1
