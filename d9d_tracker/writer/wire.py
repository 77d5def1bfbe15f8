"""What travels between the training and the writer: a header of JSON, and points as bytes. No pickles."""

import builtins
import json
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from d9d_tracker.points import Points

_OF_PYTHON: dict[str, type[BaseException]] = {
    name: kind for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, BaseException)
}


def send(connection: Connection, header: dict[str, Any], points: Points | None = None) -> None:
    """Send a message, a header of plain JSON values; ``OSError`` if nobody is there any more."""
    connection.send_bytes(json.dumps({**header, "points": points is not None}).encode())
    if points is not None:
        connection.send_bytes(points.dump())


def receive(connection: Connection) -> tuple[dict[str, Any], Points | None]:
    """Return the next message, when there is one; ``OSError`` or ``EOFError`` if nobody is there any more."""
    header = json.loads(connection.recv_bytes())
    return header, Points.load(connection.recv_bytes()) if header.pop("points") else None


def from_error(error: BaseException) -> dict[str, Any]:
    """Return an exception as plain JSON values."""
    return {"error": [kind.__name__ for kind in type(error).__mro__], "message": str(error)}


def to_error(message: dict[str, Any]) -> BaseException:
    """Return the exception of ``from_error``: of the nearest type that Python itself has and makes of words alone."""
    name, words = message["error"][0], message["message"]
    for base in message["error"]:
        if kind := _OF_PYTHON.get(base):
            said = words if base == name else f"{name}: {words}"
            with suppress(TypeError):  # as a UnicodeDecodeError, it is made of more
                return kind(said) if said else kind()
    raise AssertionError("every exception is a BaseException")
