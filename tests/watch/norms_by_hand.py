"""What norms are, by plain torch: the reference of the tests."""

import math
from collections.abc import Iterable

import torch
from torch import nn

Norms = dict[tuple[str, int], float]


def norm(tensor: torch.Tensor, p: float = 2.0) -> float:
    return torch.linalg.vector_norm(
        tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64), p
    ).item()


def total(norms: Iterable[float], p: float = 2.0) -> float:
    found = list(norms)
    return max(found) if math.isinf(p) else sum(one**p for one in found) ** (1 / p)


class ByHand:
    """Collects the norms of a model at its steps.

    Attributes:
        norms: By the name of the series and the step.
    """

    def __init__(self, model: nn.Module, p: float = 2.0):
        self.norms: Norms = {}
        self._model = model
        self._p = p
        self._before: dict[str, torch.Tensor] = {}

    def before(self, step: int, scale: float = 1.0) -> None:
        """Collect those of gradients and parameters, and keep the parameters."""
        named = dict(self._model.named_parameters())
        gradients = {name: one.grad / scale for name, one in named.items() if one.grad is not None}
        self._collect("gradients", gradients, step)
        self._collect("parameters", named, step)
        self._before = {name: one.detach().clone() for name, one in named.items() if one.requires_grad}

    def after(self, step: int) -> None:
        """Collect those of updates, and the ratios."""
        named = dict(self._model.named_parameters())
        self._collect("updates", {name: named[name].detach() - one for name, one in self._before.items()}, step)
        for name in ("", *(f"/{name}" for name in self._before)):
            update, parameter = (self.norms[f"norms/{kind}{name}", step] for kind in ("updates", "parameters"))
            self.norms[f"norms/ratios{name}", step] = update / parameter

    def _collect(self, kind: str, tensors: dict[str, torch.Tensor], step: int) -> None:
        found = {name: norm(one, self._p) for name, one in tensors.items()}
        self.norms |= {(f"norms/{kind}/{name}", step): value for name, value in found.items()}
        self.norms[f"norms/{kind}", step] = total(found.values(), self._p)
