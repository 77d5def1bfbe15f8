"""Steps that a gradient scaler skips, because a gradient is infinite: no hook of the optimizer hears of them."""

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

_hooks: OrderedDict[int, Callable[[Optimizer], None]] = OrderedDict()


def register_skipped_step_hook(hook: Callable[[Optimizer], None]) -> RemovableHandle:
    """Have a hook called whenever ``torch.amp.GradScaler.step`` has skipped an optimizer's step.

    The gradients are unscaled then, as they would have been for the optimizer. A fused optimizer skips by itself, on
    the device, and counts as one that stepped.
    """
    step = torch.amp.GradScaler.step
    if not hasattr(step, "_d9d_tracker_tells"):  # which functools.wraps hands on to what is put around it
        torch.amp.GradScaler.step = _telling(step)
    handle = RemovableHandle(_hooks)
    _hooks[handle.id] = hook
    return handle


def _telling(scaler_step: Callable[..., Any]) -> Callable[..., Any]:
    """Return a scaler's ``step`` that tells the hooks, if there are any."""

    @functools.wraps(scaler_step)
    def step(self: torch.amp.GradScaler, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if not _hooks:
            return scaler_step(self, optimizer, *args, **kwargs)
        stepped: list[Optimizer] = []
        handle = register_optimizer_step_pre_hook(lambda one, *_: stepped.append(one))
        try:
            result = scaler_step(self, optimizer, *args, **kwargs)
        finally:
            handle.remove()
        if not stepped:
            for hook in list(_hooks.values()):
                hook(optimizer)
        return result

    step.__dict__["_d9d_tracker_tells"] = True
    return step
