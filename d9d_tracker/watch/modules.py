"""What a model is made of, as its author sees it: names without wrappers, layers without their inner parts."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from d9d_tracker.errors import TrackerValueError

_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
# Their parts hold parameters, and are never called.
_WHOLE = (nn.MultiheadAttention,)


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the model inside of what compiling or parallelising has wrapped around it."""
    inner = module.module if isinstance(module, _PARALLEL) else None
    for key in _WRAPPERS & module._modules.keys():
        inner = module._modules[key]
    return module if inner is None else unwrapped(inner)


def bare_names(module: nn.Module) -> Callable[[str], str]:
    """Return what turns a name into that of the bare model: without what compiling or parallelising wraps around it."""
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


def layers(module: nn.Module) -> dict[str, tuple[tuple[str, ...], nn.Module]]:
    """Return the modules whose outputs are activations, and where they are, by the name of the bare model.

    They are those without children. A parametrized layer is one itself, and so is attention, whose projections are
    parts that nobody calls.
    """
    bare = bare_names(module)
    return {
        bare(name) or type(child).__name__: (tuple(name.split(".")) if name else (), child)
        for name, child in _leaves(module, "")
    }


def at(module: nn.Module, path: tuple[str, ...]) -> nn.Module | None:
    """Return what is at a place in a model; None if nothing is."""
    found: nn.Module | None = module
    for key in path:
        found = None if found is None else found._modules.get(key)
    return found


def refuse_flat_shards(module: nn.Module) -> None:
    """Refuse a model whose parameters are pieces of a flat tensor: a rank does not know who has the others."""
    if "torch.distributed.fsdp" in sys.modules:
        from torch.distributed.fsdp import FullyShardedDataParallel

        if any(isinstance(child, FullyShardedDataParallel) for child in module.modules()):
            raise TrackerValueError(
                "watch: FullyShardedDataParallel keeps pieces of flat tensors, whose norms ranks cannot sum up: "
                "shard with fully_shard, or leave norms=True out"
            )


def structure(module: nn.Module) -> list[Any]:
    """Return what changes when a module is put into a model, taken out of it, or has another name."""
    found: list[Any] = []
    seen, due = {module}, [module]
    while due:
        children = due.pop()._modules
        found.append((*children, *map(id, children.values())))
        for child in children.values():
            if child is not None and child not in seen:
                seen.add(child)
                due.append(child)
    return found


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
