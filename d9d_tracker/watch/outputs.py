"""What the layers of a model return: hooks on the layers that it has now, and on those that it will have."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from d9d_tracker.base import BinsHandle
from d9d_tracker.compiled.recompute import is_refused_place
from d9d_tracker.compiled.regions import is_training_region
from d9d_tracker.config import Binning
from d9d_tracker.errors import TrackerTypeError
from d9d_tracker.tracing import forget_compiled_code, is_producing_a_program, is_recomputed

from .hooks import Hooks
from .modules import at, layers, structure
from .values import named_tensors, numbers

_Layers = dict[str, tuple[tuple[str, ...], nn.Module]]


class Outputs:
    """Hooks on the layers of a model, which is not kept alive. Those of layers that come, go, or are renamed follow.

    That is looked at before each forward of the model in eager code, when a layer is not where it was any more, and
    whenever ``refresh`` is called.

    Attributes:
        names: The names of the layers.
    """

    def __init__(
        self,
        watch: Hooks,
        module: nn.Module,
        binning: Binning | None,
        make_handles: Callable[[str], tuple[BinsHandle, BinsHandle | None]],
        changed: Callable[[], None],
    ):
        self.watch = watch
        self._binning = binning
        self._module = weakref.ref(module)
        self._make_handles = make_handles
        self._changed = changed
        self._structure = structure(module)
        self.names = list(layers(module))
        self._hooks: list[_ForwardHook] = []
        self._root: RemovableHandle | None = None

    def layer(self, name: str) -> nn.Module | None:
        """Return a layer; None if it is gone."""
        module = self._module()
        return None if module is None else layers(module).get(name, (None, None))[1]

    def register(self) -> None:
        """Put the hooks in place."""
        module = self._module()
        if module is not None:
            self._root = module.register_forward_pre_hook(_BeforeForward(self))
            self._hook(layers(module))

    def remove(self) -> None:
        """Take the hooks away."""
        if self._root is not None:
            self._root.remove()
        while self._hooks:
            self._hooks.pop().handle.remove()

    def refresh(self) -> None:
        """Have the hooks on the layers that the model has now, under their names of now."""
        module = self._module()
        if module is None or self.watch.run.holds_places() or (now := structure(module)) == self._structure:
            return
        self._structure = now
        self.watch.attempt("new layers", self._follow, layers(module))

    def count(self, handle: BinsHandle, output: Any, every: int | None) -> None:
        """Count the output of a layer."""
        found = {handle.name + rest: numbers(tensor) for rest, tensor in named_tensors(output)}
        if found:
            self.watch.run.bins_many(found, dict(handle.context or {}), binning=self._binning, every=every)
        elif not torch.compiler.is_compiling():
            raise TrackerTypeError(f"{handle.name!r}: an output of type {type(output).__name__} holds no tensor")

    def is_at(self, path: tuple[str, ...], layer: nn.Module) -> bool:
        """Tell whether a layer is where it was when it was named."""
        module = self._module()
        return module is None or at(module, path) is layer

    def _follow(self, found: _Layers) -> None:
        self.names = list(found)
        self._changed()
        self._hook(found)

    def _hook(self, found: _Layers) -> None:
        due = dict(found)
        names: dict[int, list[str]] = {}
        for name, (_, layer) in found.items():
            names.setdefault(id(layer), []).append(name)
        for hook in list(self._hooks):
            own = names.get(id(hook.layer()))
            if own:
                name = own.pop(own.index(hook.name) if hook.name in own else 0)
                self.watch.attempt(name, self._name, hook, name, due.pop(name)[0])
            else:
                hook.handle.remove()
                hook.training = hook.evaluation = None
                self._hooks.remove(hook)
        for name, (path, layer) in due.items():
            self.watch.attempt(name, self._add, name, path, layer)
        forget_compiled_code()

    def _add(self, name: str, path: tuple[str, ...], layer: nn.Module) -> None:
        hook = _ForwardHook(self, layer)
        self._name(hook, name, path)
        hook.handle = layer.register_forward_hook(hook)
        self._hooks.append(hook)

    def _name(self, hook: _ForwardHook, name: str, path: tuple[str, ...]) -> None:
        hook.name, hook.path, hook.training, hook.evaluation = name, path, None, None
        hook.training, hook.evaluation = self._make_handles(name)


class _Hook:
    """A hook that is not part of a model: a copy of it, in a copied or stored module, does nothing."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Takes any arguments, returns None, and needs nothing of ours to be loaded.
        return getattr, (nullcontext(), "__exit__")


class _BeforeForward(_Hook):
    """Looks at what has become of a model before its forward."""

    def __init__(self, outputs: Outputs):
        self._outputs = outputs

    def __call__(self, module: nn.Module, args: Any) -> None:
        if not torch.compiler.is_compiling() and not is_producing_a_program():
            self._outputs.refresh()


class _ForwardHook(_Hook):
    """Counts what a layer returns.

    Attributes:
        layer: The layer, which is not kept alive.
        name: What it is called.
        path: Where it is in the model.
        training: Its series; None if there is none.
        evaluation: That of its evaluation, if it is to be counted.
        handle: Takes the hook away.
    """

    name: str
    path: tuple[str, ...]
    training: BinsHandle | None
    evaluation: BinsHandle | None
    handle: RemovableHandle

    def __init__(self, outputs: Outputs, layer: nn.Module):
        self._outputs = outputs
        self.layer = weakref.ref(layer)
        self._forwards = 0

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        watch = self._outputs.watch
        handle = self.training if module.training else self.evaluation
        if not watch.is_live or handle is None or is_producing_a_program():
            return
        if torch.compiler.is_compiling():
            # The watch is to break nothing: what is refused where this runs, or of what it gets, it leaves out.
            if is_refused_place() or is_training_region():
                return
            if any(watch.why_not(tensor) for _, tensor in named_tensors(output)):
                return
            if isinstance(output, torch.Tensor):
                handle.bins(numbers(output))
            else:
                self._outputs.count(handle, output, None)
        elif watch.run.holds_places():
            watch.attempt(handle.name, self._outputs.count, handle, output, None)
        elif not is_recomputed():
            self._forwards += 1
            if (self._forwards - 1) % watch.every == 0:
                self._count(watch, module, output)

    def _count(self, watch: Hooks, module: nn.Module, output: Any) -> None:
        if not self._outputs.is_at(self.path, module):
            self._outputs.refresh()
        handle = self.training if module.training else self.evaluation
        if handle is not None:
            watch.attempt(handle.name, self._outputs.count, handle, output, 1)
