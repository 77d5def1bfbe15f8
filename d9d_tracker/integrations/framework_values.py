"""What of the things that a framework logs is a number."""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch

from d9d_tracker.log import warn_once


def numbers_of(metrics: Mapping[Any, Any]) -> dict[str, float | torch.Tensor]:
    """Return the numbers among metrics: floats, and tensors of one element that are on a device.

    A mapping among them becomes ``name/key``; text, vectors and the like are left out, and named once a process.
    """
    numbers: dict[str, float | torch.Tensor] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            numbers.update({f"{name}/{key}": number for key, number in numbers_of(value).items()})
        elif isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_cpu:
            numbers[str(name)] = value
        elif (number := _as_float(value)) is not None:
            numbers[str(name)] = number
        else:
            shape = f" of shape {list(value.shape)}" if getattr(value, "shape", None) else ""
            words = "%r is left out, now and later: it is no number but a %s%s"
            warn_once(("no number", name), words, name, type(value).__name__, shape)
    return numbers


def same(known: Any, value: Any) -> bool:
    """Whether a value was logged before, as far as that can be told without waiting for a device."""
    if isinstance(known, torch.Tensor) or isinstance(value, torch.Tensor):
        return False
    return known == value or (math.isnan(known) and math.isnan(value))


def _as_float(value: Any) -> float | None:
    shape = getattr(value, "shape", ())
    try:
        value = value.item() if hasattr(value, "item") and math.prod(shape) == 1 else value
        return float(value) if isinstance(value, Real) else None
    except (OverflowError, RuntimeError, TypeError, ValueError):
        return None
