"""Norms of many tensors, on the device, in a number of launches that does not hang on how many they are."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from d9d_tracker.bank.placement import local_shard
from d9d_tracker.calls.calls import Calls
from d9d_tracker.calls.vector_scalars import VectorScalars, constant

from .norm_series import NormSeries
from .values import numbers

_FAST = (1.0, 2.0, math.inf)  # of which torch has kernels for many tensors
_names = itertools.count()
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
        self._p = series.p
        self._vector = VectorScalars(run, series.make, f"norms {next(_names)}", _powers)
        self._copies: list[torch.Tensor] = []

    def close(self) -> None:
        """Forget everything."""
        self._vector.close()
        self._copies = []

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
                _torch._foreach_copy_([self._copies[index] for index in group], [locals_[index] for index in group])

    def log_updates(self, parts: Sequence[Part], every: int) -> None:
        """Log the norm of what was added to each parameter since they were remembered."""
        copies, self._copies = self._copies, []
        if not copies:
            return
        with torch.no_grad():
            shards = [local_shard(part.tensor) for part in parts]
            for group in _by_device_and_dtype(copies):
                _torch._foreach_sub_([copies[index] for index in group], [shards[index][0] for index in group])
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
        order = [index for group in groups for index in group]
        vectors = [_norms([real[index] for index in group], self._p) for group in groups]
        keys = [keys[index] for index in order]
        is_gradient = tuple(key.startswith("gradients/") for key in keys)
        known = self._p, tuple(ranks[index] for index in order), is_gradient
        self._vector.merge(keys, vectors, context, every, known, scale)


def _real(tensor: torch.Tensor, p: float) -> torch.Tensor:
    """Return real floats of the same norm."""
    tensor = tensor.abs() if tensor.is_complex() and p != 2.0 else numbers(tensor)
    return tensor if tensor.is_floating_point() else tensor.to(torch.float32)


def _by_device_and_dtype(tensors: list[torch.Tensor]) -> list[list[int]]:
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, tensor in enumerate(tensors):  # of nothing, which a shard may be, there is no largest
        groups.setdefault((tensor.device, tensor.dtype, tensor.numel() > 0), []).append(index)
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
