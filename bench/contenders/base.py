"""What a way of logging looks like to the benchmark."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

# The steps between two writes, for everything that gathers: our window, and the others' "every N steps".
EVERY = 50

Kind = Literal["baseline", "by hand", "package", "ours"]


class Contender:
    """One way of logging a training loop; this one logs nothing.

    Attributes:
        name: What plots and tables call it.
        kind: Who it is.
        inside: Whether ``scalars`` is called inside the compiled step, instead of with what the step returns.
        tracks: Whether it wants values at all.
        note: What a reader must know to judge its figures.
    """

    name: str = "nothing"
    kind: Kind = "baseline"
    inside: bool = False
    tracks: bool = True
    note: str = ""

    def watch(self, model: nn.Module) -> None:
        """Log a histogram of every gradient at every step, until ``settle``."""

    def set_step(self, step: int) -> None:
        """Begin a step."""

    def scalars(self, values: Mapping[str, torch.Tensor]) -> None:
        """Log some numbers: detached tensors of no dimension, on the device."""

    def gradients(self, model: nn.Module) -> None:
        """Log a histogram of every gradient; called after the optimizer's step."""

    def end_step(self) -> None:
        """End a step."""

    def settle(self) -> None:
        """Stop watching, and wait until everything logged is written."""

    def close(self) -> None:
        """Let go of everything."""


class Nothing(Contender):
    """The untracked step, which neither computes nor returns the values."""

    tracks = False
