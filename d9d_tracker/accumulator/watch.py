"""Histograms of a whole model: gradients and parameters at every optimizer step, activations at every forward."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:
    from d9d_tracker.config import Binning

    from .run import AccumulatingRun


class Watch:
    """Hooks that log a module, until ``remove``.

    Gradients and parameters are counted right before an optimizer steps that holds them: the gradients are then those
    the optimizer uses, accumulated over micro-batches, reduced across ranks, unscaled and clipped. All of them take one
    kernel launch per dtype. Activations are counted in the forward of every leaf module, also in compiled code if the
    watch began before the module was compiled.

    Args:
        run: Where to log.
        module: What to watch.
        gradients: Log ``gradients/<parameter>``.
        parameters: Log ``parameters/<parameter>``.
        activations: Log ``activations/<module>``: the output of every leaf module that is one tensor.
        every: Count on steps divisible by this only; by default the run's cadence.
        binning: How to bin; by default the run's binning.
    """

    def __init__(
        self,
        run: AccumulatingRun,
        module: nn.Module,
        *,
        gradients: bool,
        parameters: bool,
        activations: bool,
        every: int | None,
        binning: Binning | None,
    ):
        self._run = run
        self._every = every
        self._binning = binning
        self._gradients = gradients
        self._parameters = parameters
        self._names = {parameter: name for name, parameter in module.named_parameters()}
        self._handles: list[RemovableHandle] = []
        if gradients or parameters:
            self._handles.append(register_optimizer_step_pre_hook(self._before_step))
        if activations:
            for name, child in module.named_modules():
                if not any(True for _ in child.children()):
                    self._handles.append(child.register_forward_hook(partial(self._after_forward, name)))

    def remove(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._run.is_open:
            return
        populations: dict[str, torch.Tensor] = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = self._names.get(parameter)
                if name is None:
                    continue
                if self._gradients and parameter.grad is not None:
                    populations[f"gradients/{name}"] = parameter.grad
                if self._parameters:
                    populations[f"parameters/{name}"] = parameter
        self._run.bins_many(populations, binning=self._binning, every=self._every)

    def _after_forward(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if self._run.is_open and isinstance(output, torch.Tensor):
            self._run.bins(f"activations/{name}", output, binning=self._binning, every=self._every)
