"""What a run of the benchmark is asked to do."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from .interleave import Subject
from .training import Training


@dataclass(frozen=True)
class Plan:
    """What every workload is told.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        quick: Tiny sizes and no code generation, to see that everything works; the figures mean nothing.
        folder: Where the contenders write; deleted in the end.
    """

    device: str
    quick: bool
    folder: Path

    @property
    def backend(self) -> str:
        """What ``torch.compile`` uses."""
        return "aot_eager" if self.quick else "inductor"


def subject(training: Training, window: int) -> Subject:
    """Return a training loop as something to time in windows of steps."""
    return Subject(training.run, window, training.before, training.contender.settle, window)


def count_parameters(model: nn.Module) -> int:
    """Return how many numbers a model learns."""
    return sum(parameter.numel() for parameter in model.parameters())
