"""What travels between the training and the writer: a header of JSON, and points as arrays. No pickles."""

import builtins
import json
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from d9d_tracker.record import Histogram, Record

_NUMBERS = ("sum", "sum_squares", "min", "max", "zeros", "nan", "posinf", "neginf")
_POINT = np.dtype([("series", np.int64), ("step", np.int64), ("time", np.float64), ("value", np.float64)])


def send(connection: Connection, header: dict[str, Any], points: list[Record] | None = None) -> None:
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


def receive(connection: Connection) -> tuple[dict[str, Any], list[Record]]:
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
    return header, [] if about is None else _unpacked(about, connection.recv_bytes())


def _packed(points: list[Record]) -> tuple[dict[str, Any], bytes]:
    series: dict[tuple[str, int], int] = {}
    contexts = []
    for point in points:
        if series.setdefault((point.name, id(point.context)), len(series)) == len(contexts):
            contexts.append(dict(point.context))
    histograms = [point.value for point in points if isinstance(point.value, Histogram)]
    table = np.array(
        [
            (series[name, id(context)], step, time or 0.0, np.nan if isinstance(value, Histogram) else value)
            for name, step, context, value, time in points
        ],
        dtype=_POINT,
    )
    about = {
        "count": len(points),
        "series": [[name, context] for (name, _), context in zip(series, contexts, strict=True)],
        "places": [place for place, point in enumerate(points) if isinstance(point.value, Histogram)],
        "histograms": [[len(one.counts), *(getattr(one, name) for name in _NUMBERS)] for one in histograms],
    }
    arrays = [array for one in histograms for array in (one.edges, one.counts)]
    return about, b"".join([table.tobytes(), *(np.ascontiguousarray(array).tobytes() for array in arrays)])


def _unpacked(about: dict[str, Any], payload: bytes) -> list[Record]:
    table = np.frombuffer(payload, dtype=_POINT, count=about["count"])
    values: list[Any] = table["value"].tolist()
    offset = table.nbytes
    for place, (bins, *numbers) in zip(about["places"], about["histograms"], strict=True):
        edges = np.frombuffer(payload, dtype=np.float64, count=bins + 1, offset=offset)
        counts = np.frombuffer(payload, dtype=np.int64, count=bins, offset=offset + edges.nbytes)
        offset += edges.nbytes + counts.nbytes
        values[place] = Histogram(edges=edges, counts=counts, **dict(zip(_NUMBERS, numbers, strict=True)))
    series = about["series"]
    return [
        Record(series[index][0], step, series[index][1], value, time or None)
        for (index, step, time, _), value in zip(table.tolist(), values, strict=True)
    ]


def from_error(error: BaseException) -> dict[str, Any]:
    """Return an exception as plain JSON values."""
    return {"error": [kind.__name__ for kind in type(error).__mro__], "message": str(error)}


def to_error(message: dict[str, Any]) -> BaseException:
    """Return the exception of ``from_error``: of the nearest type that Python itself has."""
    kinds = [getattr(builtins, name, None) for name in message["error"]]
    kind: Any = next(kind for kind in kinds if kind is not None)
    words = message["message"]
    return kind(words if kind.__name__ == message["error"][0] else f"{message['error'][0]}: {words}")
