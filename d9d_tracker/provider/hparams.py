"""Hyperparameters as plain data: whatever a user puts in, something a backend can store comes out."""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic_core import to_jsonable_python


def plain_hparams(hparams: dict[str, Any]) -> dict[str, Any]:
    """Convert hyperparameters to dicts with text keys, lists, text, booleans, None, integers and floats.

    Dataclasses, pydantic models, paths, dates, enums and sets become what pydantic makes of them; numpy numbers become
    Python numbers; anything else becomes its ``repr``, so that nothing is refused. Integers may be of any size and
    floats may be non-finite: a backend that cannot store them says how it writes them.

    Args:
        hparams: The hyperparameters.

    Returns:
        A new dict with the same keys in the same order.
    """
    return {key: _plain(value) for key, value in hparams.items()}


def _plain(value: Any) -> Any:
    try:
        return to_jsonable_python(value, fallback=_fallback)
    except ValueError:
        # Bytes that are not UTF-8, or a structure that contains itself.
        return repr(value)


def _fallback(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else repr(value)


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
        key = wanted = ".".join(way)
        number = 1
        while key in flat:
            number += 1
            key = f"{wanted}~{number}"
        flat[key] = _leaf(value)
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
