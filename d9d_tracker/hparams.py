"""Hyperparameters as plain data: whatever a user puts in, something a backend can store comes out."""

import dataclasses
import enum
import itertools
import json
import math
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from d9d_tracker.lazy_torch import is_tensor

_MOST_ELEMENTS = 1000
_DEEPEST = 100


def plain_hparams(hparams: Any) -> dict[str, Any]:
    """Convert hyperparameters to dicts with text keys, lists, text, booleans, None, integers and floats.

    Mappings of any kind, dataclasses, pydantic models, namespaces and the configurations of OmegaConf (resolved) and
    ml_collections become dicts; sets, arrays and tensors lists; NumPy's numbers Python numbers; paths, dates and enums
    what pydantic makes of them. Anything else becomes its ``repr``, so that nothing is refused; an iterator is not
    consumed. Integers may be of any size and floats may be non-finite: a backend that cannot store them says how it
    writes them.

    Args:
        hparams: The hyperparameters.

    Returns:
        A new dict in the same order. Where two keys read the same, the later one ends in ``~2``, ``~3`` and so on.
    """
    plain = _plain(hparams, ())
    return plain if isinstance(plain, dict) else {"hparams": plain}


def _plain(value: Any, above: tuple[int, ...]) -> Any:
    try:
        if id(value) in above or len(above) == _DEEPEST:
            return _repr(value)
        items = _items(value)
        if items is not None:
            return _dict(items, (*above, id(value)))
        parts = _parts(value)
        if parts is not None:
            return [_plain(part, (*above, id(value))) for part in parts]
        return _leaf_of(value)
    except Exception:  # whatever a user's object does when it is looked at
        return _repr(value)


def _items(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """Return the items of what is a dict by another name."""
    module = type(value).__module__.partition(".")[0]
    if module == "omegaconf":
        return _of_omegaconf(value)
    if module == "ml_collections":
        return value.to_dict().items()
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, BaseModel):
        return [(name, getattr(value, name)) for name in type(value).model_fields]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return vars(value).items() if isinstance(value, Namespace | SimpleNamespace) else None


def _of_omegaconf(value: Any) -> Iterable[tuple[Any, Any]] | None:
    from omegaconf import DictConfig, OmegaConf  # whoever has made such a value has it

    if not isinstance(value, DictConfig):
        return None
    try:
        container: Any = OmegaConf.to_container(value, resolve=True)
    except Exception:  # of an interpolation that cannot be resolved, the text is kept
        container = OmegaConf.to_container(value, resolve=False)
    return container.items()


def _parts(value: Any) -> Iterable[Any] | None:
    if type(value).__module__.startswith("omegaconf"):
        return list(value)
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if isinstance(value, np.ndarray):
        return value.tolist() if value.ndim and value.size <= _MOST_ELEMENTS else None
    if is_tensor(value):
        return value.tolist() if value.dim() and value.numel() <= _MOST_ELEMENTS else None
    return None


def _dict(items: Iterable[tuple[Any, Any]], above: tuple[int, ...]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, value in items:
        text = _leaf_of(key)  # of an enum, for one
        plain[_free(text if isinstance(text, str) else _repr(key), plain)] = _plain(value, above)
    return plain


def _free(key: str, taken: Mapping[str, Any]) -> str:
    names = (key if number == 1 else f"{key}~{number}" for number in itertools.count(1))
    return next(name for name in names if name not in taken)


def _leaf_of(value: Any) -> Any:
    if isinstance(value, np.generic) or (is_tensor(value) and value.numel() == 1):
        value = value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, enum.Enum):
        return _plain(value.value, ())
    if isinstance(value, Iterator):
        return _repr(value)
    try:
        return to_jsonable_python(value, fallback=_repr)
    except ValueError:  # bytes that are not UTF-8
        return _repr(value)


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"


def flat_hparams(hparams: dict[str, Any]) -> dict[str, bool | int | float | str]:
    """Convert hyperparameters to one level, for backends that know no other.

    Args:
        hparams: The hyperparameters.

    Returns:
        Booleans, finite floats, integers of up to 64 bits and text, by the keys on their way joined with dots. Lists
        and empty dicts become their JSON text, None and all other numbers the text of their ``repr``. Where two ways
        read the same, the later one ends in ``~2``, ``~3`` and so on.
    """
    flat: dict[str, bool | int | float | str] = {}
    for way, value in _leaves(plain_hparams(hparams), ()):
        flat[_free(".".join(way), flat)] = _leaf(value)
    return flat


def _leaves(value: Any, way: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict) and (value or not way):
        for key, part in value.items():
            yield from _leaves(part, (*way, key))
    else:
        yield way, value


def _leaf(value: Any) -> bool | int | float | str:
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    return value if isinstance(value, float) and math.isfinite(value) else repr(value)
