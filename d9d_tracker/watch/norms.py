"""Norms of many tensors, on the device, in a number of launches that does not hang on how many they are."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from d9d_tracker.bank.placement import local_shard
from d9d_tracker.bank.vectors import constant, index, merge_vector
from d9d_tracker.calls.calls import Calls
from d9d_tracker.compiled.effects import finishes, merge_vector_with_effect
from d9d_tracker.compiled.regions import refuse_effect_here
from d9d_tracker.compiled.runs import Key
from d9d_tracker.compiled.slots import token_of
from d9d_tracker.errors import TrackerValueError, fail
from d9d_tracker.lazy_torch import assume_constant_result
from d9d_tracker.series.series import ContextItems
from d9d_tracker.tracing import allow_as_constant

from .norm_series import NormSeries
from .values import numbers

_FAST = (1.0, 2.0, math.inf)  # of which torch has kernels for many tensors
_torch: Any = torch  # its operators on many tensors, which optimizers use, are private to pyright


class Part(NamedTuple):
    """What a norm is of.

    Attributes:
        key: See ``NormSeries.make``.
        tensor: The tensor: of any dtype and layout, also distributed.
    """

    key: str
    tensor: torch.Tensor


class Norms:
    """Logs the norms of tensors: this rank's part of each, which becomes the whole when the windows of ranks meet."""

    def __init__(self, run: Calls, series: NormSeries):
        self._run, self._series, self._p = run, series, series.p
        self._slots: dict[tuple[ContextItems, tuple[str, ...]], torch.Tensor] = {}
        self._copies: list[torch.Tensor] = []

    def log(
        self, parts: Sequence[Part], context: dict[str, str] | None, every: int, scale: torch.Tensor | None = None
    ) -> None:
        """Log the norm of each tensor, of gradients those that ``scale``, of one element, has still to divide."""
        if not parts:
            return
        with torch.no_grad():
            shards = [local_shard(part.tensor) for part in parts]
            keys = [part.key for part in parts]
            self._log(keys, [shard for shard, _ in shards], [ranks for _, ranks in shards], context, every, scale)

    def remember(self, tensors: Sequence[torch.Tensor]) -> None:
        """Copy what is about to be updated."""
        with torch.no_grad():
            locals_ = [local_shard(tensor)[0] for tensor in tensors]
            self._copies = [torch.empty_like(local) for local in locals_]
            for group in _by_device_and_dtype(locals_):
                _torch._foreach_copy_([self._copies[one] for one in group], [locals_[one] for one in group])

    def log_updates(self, parts: Sequence[Part], every: int) -> None:
        """Log the norm of what was added to each parameter since they were remembered."""
        copies, self._copies = self._copies, []
        if not copies:
            return
        with torch.no_grad():
            shards = [local_shard(part.tensor) for part in parts]
            for group in _by_device_and_dtype(copies):
                _torch._foreach_sub_([copies[one] for one in group], [shards[one][0] for one in group])
            self._log([part.key for part in parts], copies, [ranks for _, ranks in shards], None, every, None)

    def _log(
        self,
        keys: list[str],
        shards: list[torch.Tensor],
        ranks: list[int],
        context: dict[str, str] | None,
        every: int,
        scale: torch.Tensor | None,
    ) -> None:
        real = [_real(shard, self._p) for shard in shards]
        groups = _by_device_and_dtype(real)
        order = [one for group in groups for one in group]
        vectors = [_norms([real[one] for one in group], self._p) for group in groups]
        ordered = tuple(keys[one] for one in order)
        known = self._p, tuple(ranks[one] for one in order), tuple(key.startswith("gradients/") for key in ordered)
        self._merge(ordered, self._run._items("watch", context, "global"), vectors, every, known, scale)

    def _merge(
        self,
        keys: tuple[str, ...],
        items: ContextItems,
        vectors: list[torch.Tensor],
        every: int,
        known: tuple[float, tuple[int, ...], tuple[bool, ...]],
        scale: torch.Tensor | None,
    ) -> None:
        """Merge what ``_powers`` makes of what is ``known`` and vectors into the series of the keys, on the device."""
        run, buffers, is_max = self._run, self._run.buffers, math.isinf(self._p)
        device, held = buffers.device, run.holds_places()
        if held and buffers.is_gpu and any(vector.device != device for vector in vectors):
            fail(TrackerValueError, f"norms on several devices, or on {vectors[0].device}, are of eager code alone")
        if not buffers.has_bank(vectors):
            if torch.compiler.is_compiling():
                refuse_effect_here()
                places, finish = _places(run.key, self._series, keys, items), _finish_at(known)
                merge_vector_with_effect(token_of(run.key), places, vectors, every, is_max, finish, scale)
            else:
                slots, finish = self._find(keys, items).tolist(), functools.partial(_powers, *known)
                buffers.change(buffers.merge_vector, slots, vectors, is_max, finish, scale)
            return
        bank = buffers.scalars
        is_on = None if every == 1 else bank.step % every == 0
        wide = [vector.to(device, torch.float64, non_blocking=True) for vector in vectors]
        factor = None if scale is None else scale.to(device, torch.float64, non_blocking=True)
        values = _powers(*known, wide, factor)
        if not held:
            buffers.change(merge_vector, bank.current, self._find(keys, items), values, is_max, is_on)
            return
        places = _places(run.key, self._series, keys, items)
        kept = [one for one, place in enumerate(places) if place >= 0]  # else none was left
        if kept and len(kept) < len(places):
            values, places = values[index(kept, device)], [places[one] for one in kept]
        if kept:
            slots = buffers.places.table[index(places, device)] % bank.current.shape[1]
            merge_vector(bank.current, slots, values, is_max, is_on)

    def _find(self, keys: tuple[str, ...], items: ContextItems) -> torch.Tensor:
        if (items, keys) not in self._slots:
            registry, current = self._run.buffers.scalar_series, self._run.buffers.scalars.current
            slots = [registry.slot(self._series.make(key, items)) for key in keys]
            with torch.inference_mode(False):
                self._slots[items, keys] = index([slot % current.shape[1] for slot in slots], current.device)
        return self._slots[items, keys]


def _real(tensor: torch.Tensor, p: float) -> torch.Tensor:
    """Return real floats of the same norm."""
    tensor = tensor.abs() if tensor.is_complex() and p != 2.0 else numbers(tensor)
    return tensor if tensor.is_floating_point() else tensor.to(torch.float32)


def _by_device_and_dtype(tensors: list[torch.Tensor]) -> list[list[int]]:
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, tensor in enumerate(tensors):  # of nothing, which a shard may be, there is no largest
        groups.setdefault((tensor.device, tensor.dtype, tensor.numel() > 0), []).append(place)
    return list(groups.values())


def _norms(tensors: list[torch.Tensor], p: float) -> torch.Tensor:
    """Return the norms of tensors of one device and dtype, or, where torch has no kernel for these, their powers."""
    dtype = tensors[0].dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    if not tensors[0].numel():
        return torch.zeros(len(tensors), dtype=wide, device=tensors[0].device)
    if p in _FAST:
        return torch.stack(_torch._foreach_norm(tensors, p, wide))
    widened = [torch.empty_like(tensor, dtype=wide) for tensor in tensors]
    _torch._foreach_copy_(widened, tensors)
    _torch._foreach_abs_(widened)
    _torch._foreach_pow_(widened, p)
    return torch.stack(_torch._foreach_norm(widened, 1.0))


def _powers(
    p: float, ranks: Sequence[int], is_gradient: Sequence[bool], vectors: list[torch.Tensor], scale: torch.Tensor | None
) -> torch.Tensor:
    """Return the p-th power of each norm, the norm itself for infinity, float64.

    Args:
        p: Which norm.
        ranks: On how many ranks each tensor is.
        is_gradient: Which are divided by the scale.
        vectors: What ``_norms`` returned, as float64.
        scale: Of one element, float64.
    """
    powers, is_sum = vectors[0] if len(vectors) == 1 else torch.cat(vectors), not math.isinf(p)
    if p == 2.0:
        powers = powers * powers
    if scale is not None:
        inverse = scale.reciprocal()
        divided = constant(is_gradient, powers.device) > 0
        powers = torch.where(divided, powers * (inverse**p if is_sum else inverse), powers)
    return powers * constant(ranks, powers.device) if is_sum and any(one != 1 for one in ranks) else powers


allow_as_constant(NormSeries)


@assume_constant_result
def _places(key: Key, series: NormSeries, keys: tuple[str, ...], items: ContextItems) -> tuple[int, ...]:
    places = key[0].run.buffers.places
    return tuple(places.claim(series.make(one, items)) for one in keys)


@assume_constant_result
def _finish_at(known: tuple[float, tuple[int, ...], tuple[bool, ...]]) -> int:
    finishes.append(functools.partial(_powers, *known))
    return len(finishes) - 1
