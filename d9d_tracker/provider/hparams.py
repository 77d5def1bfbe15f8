"""Hyperparameters as plain data: whatever a user puts in, something a backend can store comes out."""

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
