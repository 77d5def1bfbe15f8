"""Which steps of which optimizers count, and when in a step: hooks around all optimizers of the process."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from d9d_tracker.tracing import is_in_another_step, is_producing_a_program

from .skipped_steps import register_skipped_step_hook

Told = Callable[[Optimizer], None]
Counted = Callable[[Optimizer, int], None]


class OptimizerSteps:
    """Tells a watch of every so many steps of each optimizer; of one within another, of the outer one's alone.

    In compiled and captured code, which runs again without Python, every so many are steps of the run.
    """

    def __init__(
        self,
        every: int,
        holds_places: Callable[[], bool],
        count: Counted,
        skipped: Told,
        updates: tuple[Told, Counted] | None,
    ):
        self._every = every
        self._holds_places = holds_places
        self._count = count
        self._skipped = skipped
        self._updates = updates  # what is told when a step begins, and what counts when it has ended
        self._begun: weakref.ref[Optimizer] | None = None
        self._steps: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()
        self._handles: list[RemovableHandle] = []

    def register(self) -> None:
        """Put the hooks in place."""
        self._handles.append(register_optimizer_step_pre_hook(self._before))
        self._handles.append(register_skipped_step_hook(self._skipped))
        if self._updates is not None:
            self._handles.append(register_optimizer_step_post_hook(self._after))

    def remove(self) -> None:
        """Take the hooks away."""
        while self._handles:
            self._handles.pop().remove()

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Count now, or once the closure has computed the gradients for the first time."""
        if is_producing_a_program():
            return None
        every = self._every
        if not torch.compiler.is_compiling() and not self._holds_places():
            if is_in_another_step():
                return None
            done = self._steps.get(optimizer, 0)
            self._steps[optimizer] = done + 1
            if done % every:
                return None
            every = 1
        if self._updates is not None:
            self._begun = None if torch.compiler.is_compiling() else weakref.ref(optimizer)
            self._updates[0](optimizer)
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._count(optimizer, every)
            return None
        is_first = True

        def counted() -> Any:
            nonlocal is_first
            loss = closure()
            if is_first:
                is_first = False
                self._count(optimizer, every)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": counted}
        return (args[0], counted, *args[2:]), kwargs

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if is_producing_a_program() or self._updates is None:
            return
        count = self._updates[1]
        if torch.compiler.is_compiling() or self._holds_places():
            count(optimizer, self._every)
        elif self._begun is not None and self._begun() is optimizer:
            self._begun = None
            count(optimizer, 1)
