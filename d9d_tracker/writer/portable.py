"""What another process can be given: types and functions that it can import, and values as JSON."""

from collections.abc import Callable, Mapping
from importlib import import_module
from operator import attrgetter
from typing import Any

from d9d_tracker.base import BaseTracker


def path_of(thing: Any) -> str | None:
    """Return where another process can import a type or a function from; None if it cannot."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", "<>")
    if module in (None, "__main__") or "<" in name:
        return None
    try:
        return f"{module}:{name}" if load(f"{module}:{name}") is thing else None
    except (ImportError, AttributeError):
        return None


def load(path: str) -> Any:
    """Return what ``path_of`` has named."""
    module, _, name = path.partition(":")
    return attrgetter(name)(import_module(module))


def is_portable(backend: BaseTracker[Any]) -> bool:
    """Return whether another process could make this backend.

    It must be able to import the types, and to get the whole configuration as JSON: a ``SecretStr`` is masked there.
    """
    config = backend.config
    if config is None or path_of(type(backend)) is None or path_of(type(config)) is None:
        return False
    try:
        return type(config).model_validate_json(config.model_dump_json()) == config
    except ValueError:
        return False


def obstacle(action: Callable[..., object], arguments: Mapping[str, object]) -> str | None:
    """Return why another process could not be asked for an action, and what to give instead; None if it could."""
    for name, value in arguments.items():
        if not _is_json(value):
            return f"{name}={value!r:.100} is no JSON: pass numbers, text, lists, or the path of a file that you saved"
    if path_of(action) is None:
        words = getattr(action, "__qualname__", repr(action))
        return f"{words} cannot be imported: pass a function of a module other than the script, and its arguments"
    return None


def _is_json(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    return value is None or isinstance(value, bool | int | float | str)
