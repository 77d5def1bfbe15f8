"""Names and texts as MLflow allows them."""

import hashlib
import posixpath
import re
from functools import lru_cache

_FORBIDDEN = re.compile(r"[^\w.\- :/]")
_LONGEST = 250
_DIGEST = 8


@lru_cache(maxsize=65536)
def valid_key(key: str) -> str:
    """Return a key unchanged if MLflow takes it for a metric or parameter, else one like it that it takes.

    Forbidden characters, slashes without anything between them and what is beyond 250 characters are replaced; eight
    digits of the original's SHA-256 at the end keep different keys apart.
    """
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    valid = _FORBIDDEN.sub("_", key)
    valid = "/".join("_" * max(1, len(part)) if not part.strip(".") else part for part in valid.split("/"))
    if valid == key and len(key) <= _LONGEST and posixpath.normpath(key) == key:
        return key
    return f"{valid[: _LONGEST - _DIGEST - 1]}-{digest}"


def chunks(key: str, text: str, size: int) -> dict[str, str]:
    """Return a text as tags of ``size`` characters at most: ``key``, ``key/2``, ``key/3`` and so on."""
    parts = [text[start : start + size] for start in range(0, len(text), size)] or [""]
    return {key if number == 1 else f"{key}/{number}": part for number, part in enumerate(parts, start=1)}
