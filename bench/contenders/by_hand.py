"""What people write themselves."""

from collections import defaultdict, deque
from collections.abc import Mapping

import torch
from torch import nn

from .base import EVERY, Contender, Kind


class ItemEveryStep(Contender):
    """``.item()`` each step, to lists; gradients by ``torch.histc``."""

    name = ".item() to a list"
    kind: Kind = "by hand"

    def __init__(self):
        self.lists: dict[str, list[float]] = defaultdict(list)
        self.histograms: dict[str, tuple[float, float, list[float]]] = {}

    def scalars(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self.lists[name].append(value.item())

    def gradients(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            gradient = parameter.grad.float()
            low, high = (bound.item() for bound in gradient.aminmax())
            self.histograms[name] = low, high, torch.histc(gradient, 64, low, high).tolist()

    def settle(self) -> None:
        self.lists.clear()


class StackEveryN(Contender):
    """Keep the tensors of N steps, then fetch them in one copy."""

    name = f"torch.stack every {EVERY} steps"
    kind: Kind = "by hand"
    note = "one blocking copy per N steps; every value is its own output of the compiled step"

    def __init__(self):
        self.pending: list[torch.Tensor] = []
        self.lists: list[list[float]] = []
        self.steps = 0

    def scalars(self, values: Mapping[str, torch.Tensor]) -> None:
        self.pending.extend(values.values())

    def end_step(self) -> None:
        self.steps += 1
        if self.steps % EVERY == 0:
            self._fetch()

    def settle(self) -> None:
        self._fetch()
        self.lists.clear()

    def _fetch(self) -> None:
        if self.pending:
            self.lists.append(torch.stack(self.pending).tolist())
            self.pending = []


class D9dWriter(Contender):
    """The tracker writer of d9d 0.24 from its description: a copy per value, written once its event has passed."""

    name = "d9d 0.24 writer (re-implemented)"
    kind: Kind = "by hand"
    note = "d9d 0.24 needs torch 2.14 or newer, so its method is re-implemented from its description"

    def __init__(self):
        self.pending: deque[tuple[str, torch.Tensor, torch.cuda.Event | None]] = deque()
        self.lists: dict[str, list[float]] = defaultdict(list)

    def scalars(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, value in values.items():
            event = torch.cuda.Event() if value.is_cuda else None
            self.pending.append((name, value.to("cpu", non_blocking=True, copy=True), event))
            if event is not None:
                event.record()
        self._write(wait=False)

    def settle(self) -> None:
        self._write(wait=True)
        self.lists.clear()

    def _write(self, wait: bool) -> None:
        while self.pending:
            name, value, event = self.pending[0]
            if event is not None and wait:
                event.synchronize()
            elif event is not None and not event.query():
                return
            self.pending.popleft()
            self.lists[name].append(value.item())
