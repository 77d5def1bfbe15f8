"""Values of a type as JSON, whatever their text holds: pydantic's own refuses what UTF-8 cannot encode."""

import json
from typing import Any

from pydantic import TypeAdapter


class Plain:
    """What ``kind`` describes, as JSON."""

    def __init__(self, kind: Any):
        self._adapter = TypeAdapter(kind)

    def dump(self, value: Any) -> bytes:
        """Return a value as JSON."""
        return json.dumps(self._adapter.dump_python(value, mode="json"), separators=(",", ":")).encode()

    def load(self, data: str | bytes) -> Any:
        """Return what ``dump`` was given; ``ValueError`` if it is none."""
        return self._adapter.validate_python(json.loads(data))
