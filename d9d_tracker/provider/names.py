"""One text for a name and its context, for backends whose series have no tags."""

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

_INT64 = range(-(2**63), 2**63)


def flat_name(name: str, context: Mapping[str, str], sign: str = "=") -> str:
    """Join a name and its sorted tags, as ``loss/rank=0/stage=train``; different series get different texts.

    A sign within the name, and a sign or slash within a tag, is percent-encoded. What UTF-8 cannot encode is escaped.
    """
    return _flat_name(name, tuple(context.items()), sign)


@lru_cache(maxsize=65536)
def _flat_name(name: str, tags: tuple[tuple[str, str], ...], sign: str) -> str:
    quoted = [f"{_quote(key, sign, '/')}{sign}{_quote(value, sign, '/')}" for key, value in sorted(tags)]
    return encodable("/".join([_quote(name, sign), *quoted]))


def _quote(text: str, *signs: str) -> str:
    # A percent sign stays as it is where it could not be taken for the start of a code.
    text = re.sub("%(?=2[5F]|3[AD])", "%25", text)
    for sign in signs:
        text = text.replace(sign, f"%{ord(sign):02X}")
    return text


def encodable(value: Any) -> Any:
    """Return a value unchanged, unless it is text with lone surrogates, which become escapes that UTF-8 can encode."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, str) else value


def storable(value: Any, finite: bool = True, int64: bool = True, empty_key: str = "") -> Any:
    """Rewrite plain data for backends that have no form for some: lone surrogates become escapes, some numbers text."""
    if isinstance(value, dict):
        return {encodable(key) or empty_key: storable(part, finite, int64, empty_key) for key, part in value.items()}
    if isinstance(value, list):
        return [storable(part, finite, int64, empty_key) for part in value]
    if isinstance(value, float) and finite and not math.isfinite(value):
        return repr(value)
    return repr(value) if isinstance(value, int) and int64 and value not in _INT64 else encodable(value)
