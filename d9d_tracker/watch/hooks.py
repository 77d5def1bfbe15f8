"""What hooks of a watch share: where they log, whether they still do, and that they never end the training."""

from collections.abc import Callable
from typing import Any

import torch

from d9d_tracker.bank.placement import is_partial
from d9d_tracker.calls.histogram_calls import HistogramCalls
from d9d_tracker.log import logger
from d9d_tracker_kernels.ops import SUPPORTED_DTYPES


class Hooks:
    """The base of a watch, for what it puts into a model.

    Attributes:
        run: Where they log.
        every: The cadence, in steps of an optimizer or forwards of a layer.
        is_live: Whether they log.
    """

    def __init__(self, run: HistogramCalls, every: int):
        self.run = run
        self.every = every
        self.is_live = True
        self._said: set[str] = set()

    def attempt(self, what: str, log: Callable[..., None], *arguments: Any) -> None:
        """Log from a hook, if they log at all; say once what could not be."""
        try:
            if self.is_live:
                log(*arguments)
        except Exception as error:
            self.say_once(what, str(error))

    def why_not(self, tensor: torch.Tensor) -> str | None:
        """Return why a tensor cannot be counted here, in words; None if it can. May be traced."""
        buffers = self.run.buffers
        if tensor.is_meta:
            return "it is on meta, where it has no values"
        if tensor.is_nested and torch.compiler.is_compiling():
            return "it is nested, and compiled code counts its values() alone"
        if buffers.is_gpu and tensor.device != buffers.device and self.run.holds_places():
            return f"it is on {tensor.device}, and captured and compiled code counts on {buffers.device} alone"
        kinds = (tensor.is_floating_point(), tensor.is_complex(), tensor.is_quantized)  # of which there are numbers()
        if tensor.dtype not in SUPPORTED_DTYPES and not any(kinds):
            return f"its values are of {tensor.dtype}"
        return "it is partial, and exists only after a reduction across ranks" if is_partial(tensor) else None

    def say_once(self, what: str, why: str) -> None:
        """Say that something cannot be counted."""
        if what not in self._said:
            self._said.add(what)
            logger.error("watch: %s cannot be counted, and training goes on: %s", what, why)
