"""What travels between the training and the writer: a header of JSON, and points as arrays. No pickles."""

import builtins
import json
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from d9d_tracker.points import Points
from d9d_tracker.record import STATISTICS, Histogram, Record

_OF_PYTHON: dict[str, type[BaseException]] = {
    name: kind for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, BaseException)
}


def send(connection: Connection, header: dict[str, Any], points: Points | None = None) -> None:
    """Send a message.

    Args:
        connection: Where to.
        header: Plain JSON values.
        points: Points that belong to it.

    Raises:
        OSError: If nobody is there any more.
    """
    if points is None:
        connection.send_bytes(json.dumps(header).encode())
        return
    about, payload = _packed(points)
    connection.send_bytes(json.dumps({**header, "points": about}).encode())
    connection.send_bytes(payload)


def receive(connection: Connection) -> tuple[dict[str, Any], Points | None]:
    """Return the next message, when there is one.

    Args:
        connection: Where from.

    Returns:
        Its header and its points.

    Raises:
        OSError: If nobody is there any more; ``EOFError`` says the same.
    """
    header = json.loads(connection.recv_bytes())
    about = header.pop("points", None)
    return header, None if about is None else _unpacked(about, connection.recv_bytes())


def _packed(points: Points) -> tuple[dict[str, Any], bytes]:
    histograms: list[Any] = []
    arrays = [points.places, points.steps, points.times, points.values]
    for name, step, context, value, time in points.histograms:
        assert isinstance(value, Histogram)
        numbers = [getattr(value, number) for number in STATISTICS]
        histograms.append([name, step, dict(context), time, len(value.counts), *numbers])
        arrays += [value.edges, value.counts]
    about = {"numbers": len(points.values), "series": points.series, "histograms": histograms}
    return about, b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)


def _unpacked(about: dict[str, Any], payload: bytes) -> Points:
    offset = 0

    def take(count: int, dtype: type) -> np.ndarray:
        nonlocal offset
        array = np.frombuffer(payload, dtype=dtype, count=count, offset=offset)
        offset += array.nbytes
        return array

    kinds = (np.int64, np.int64, np.float64, np.float64)
    places, steps, times, values = (take(about["numbers"], kind) for kind in kinds)
    histograms = []
    for name, step, context, time, bins, *numbers in about["histograms"]:
        edges, counts = take(bins + 1, np.float64), take(bins, np.int64)
        histogram = Histogram(edges=edges, counts=counts, **dict(zip(STATISTICS, numbers, strict=True)))
        histograms.append(Record(name, step, context, histogram, time))
    return Points([tuple(series) for series in about["series"]], places, steps, times, values, histograms)


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
