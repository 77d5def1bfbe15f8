"""Steps that a gradient scaler skips, because a gradient is infinite: no hook of the optimizer hears of them."""

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

_hooks: OrderedDict[int, Callable[[Optimizer], None]] = OrderedDict()
_scaler_step = torch.amp.GradScaler.step


def register_skipped_step_hook(hook: Callable[[Optimizer], None]) -> RemovableHandle:
    """Have a hook called whenever ``torch.amp.GradScaler.step`` has skipped an optimizer's step.

    The gradients are unscaled then, as they would have been for the optimizer. A fused optimizer skips by itself, on
    the device, and counts as one that stepped.

    Args:
        hook: Gets the optimizer.
    """
    torch.amp.GradScaler.step = _step
    handle = RemovableHandle(_hooks)
    _hooks[handle.id] = hook
    return handle


@functools.wraps(_scaler_step)
def _step(self: torch.amp.GradScaler, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
    if not _hooks:
        return _scaler_step(self, optimizer, *args, **kwargs)
    stepped: list[Optimizer] = []
    handle = register_optimizer_step_pre_hook(lambda one, *_: stepped.append(one))
    try:
        result = _scaler_step(self, optimizer, *args, **kwargs)
    finally:
        handle.remove()
    if not stepped:
        for hook in list(_hooks.values()):
            hook(optimizer)
    return result
