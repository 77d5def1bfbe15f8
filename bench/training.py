"""A training loop with a contender in it."""

from collections.abc import Callable
from types import CodeType, FunctionType

import torch
from torch import nn

from .contenders import Contender
from .models import Batch, Values

Forward = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, Values]]


def forward_of(model: nn.Module, contender: Contender, *, backend: str | None, bfloat16: bool = False) -> Forward:
    """Return the forward of a model, with the logging inside if that is where the contender logs.

    Args:
        model: ``forward(inputs, targets)`` returns the loss and the values to log.
        contender: Who logs. Those that log outside may share a forward.
        backend: What ``torch.compile`` uses, or None to run eagerly.
        bfloat16: Whether it runs under autocast.

    Returns:
        A function from inputs and targets to the loss and the values that are still to be logged.
    """

    def forward(inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, Values]:
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=bfloat16):
            loss, values = model(inputs, targets)
        if contender.inside:
            contender.scalars(values)
            return loss, {}
        return loss, values if contender.tracks else {}

    return forward if backend is None else torch.compile(own_code(forward), fullgraph=True, backend=backend)


def own_code(function: Callable) -> Callable:
    """Return the function with code of its own: what the compiler keeps, guards included, it keeps per code object."""
    assert isinstance(function, FunctionType)
    code: CodeType = function.__code__.replace()
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)


class Training:
    """Trains a model on one batch and lets a contender log.

    Args:
        contender: Who logs.
        model: The model.
        batch: Inputs and targets.
        forward: What ``forward_of`` returned.
        gradients: Whether to log a histogram of every gradient at every step as well.
    """

    def __init__(
        self, contender: Contender, model: nn.Module, batch: Batch, forward: Forward, *, gradients: bool = False
    ):
        self.contender = contender
        self.steps = 0
        self._model, self._batch, self._forward, self._gradients = model, batch, forward, gradients
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def before(self) -> None:
        """Begin a round."""
        if self._gradients:
            self.contender.watch(self._model)

    def run(self, steps: int, *, learn: bool = True) -> None:
        """Train for some steps.

        Args:
            steps: How many.
            learn: Whether to go backward and step the optimizer; without, the forward and what is logged remain.
        """
        contender = self.contender
        for _ in range(steps):
            self.steps += 1
            contender.set_step(self.steps)
            loss, values = self._forward(*self._batch)
            if learn:
                loss.backward()
                self._optimizer.step()
            if values:
                contender.scalars(values)
            if self._gradients and contender.tracks:
                contender.gradients(self._model)
            contender.end_step()
            self._optimizer.zero_grad()
