"""What a model is made of, as its author sees it: names without wrappers, layers without their inner parts."""

import weakref
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.weak import WeakIdKeyDictionary

_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
# Their parts hold parameters, and are never called.
_WHOLE = (nn.MultiheadAttention,)


def bare_names(module: nn.Module) -> Callable[[str], str]:
    """Return what turns a name into that of the bare model: without what compiling or parallelising wraps around it.

    Args:
        module: The model, wrapped or not.
    """
    wrapped = {f"{name}.module".lstrip(".") for name, child in module.named_modules() if isinstance(child, _PARALLEL)}

    def bare(name: str) -> str:
        parts = name.split(".")
        kept = [
            part
            for place, part in enumerate(parts)
            if part not in _WRAPPERS and ".".join(parts[: place + 1]) not in wrapped
        ]
        return ".".join(kept)

    return bare


def layers(module: nn.Module) -> dict[str, nn.Module]:
    """Return the modules whose outputs are activations, by the name of the bare model.

    They are those without children. A parametrized layer is one itself, and so is attention, whose projections are
    parts that nobody calls.

    Args:
        module: The model.
    """
    bare = bare_names(module)
    return {bare(name) or type(child).__name__: child for name, child in _leaves(module, "")}


def _leaves(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    children = [
        (key, child)
        for key, child in module.named_children()
        if not (key == "parametrizations" and is_parametrized(module))
    ]
    if not children or isinstance(module, _WHOLE):
        yield name, module
        return
    for key, child in children:
        yield from _leaves(child, f"{name}.{key}".lstrip("."))


class ParameterNames:
    """The names of a model's parameters, also of those that take another's place later.

    Args:
        module: The model. It is not kept alive, nor is any parameter.
    """

    def __init__(self, module: nn.Module):
        self._module = weakref.ref(module)
        self._names = WeakIdKeyDictionary()
        self._foreign = WeakIdKeyDictionary()
        self._read()

    def of(self, parameter: torch.Tensor) -> str | None:
        """Return the name of a parameter, None if it is not the model's.

        Args:
            parameter: What an optimizer holds.
        """
        name = self._names.get(parameter)
        if name is None and parameter not in self._foreign:
            # Sharding, adapters, assigned states and new heads put other tensors in.
            self._read()
            name = self._names.get(parameter)
            if name is None:
                self._foreign[parameter] = True
        return name

    def _read(self) -> None:
        module = self._module()
        if module is not None:
            bare = bare_names(module)
            for name, parameter in module.named_parameters():
                self._names[parameter] = bare(name)
