"""A part as bytes: a short JSON head, the series where they changed, then the states as they lie in memory.

int64 length of the head | head, JSON, padded to 8 bytes | lanes float64 | moments float64 | counts int64
"""

import json
import struct
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from d9d_tracker.accumulator.host_window import HostWindow
from d9d_tracker.accumulator.registry import HistogramSeries, Reduction, ScalarSeries
from d9d_tracker.accumulator.scalars import LANES
from d9d_tracker.config import Binning
from d9d_tracker_kernels import CELLS, HEADER, MOMENTS

from .part import END, Part

_LENGTH = struct.Struct("<q")


class _SeriesTable(BaseModel):
    """Series in the order of their slots, each with the number of ranks that know it."""

    model_config = ConfigDict(frozen=True)

    scalars: list[tuple[str, tuple[tuple[str, str], ...], Reduction, int]]
    histograms: list[tuple[str, tuple[tuple[str, str], ...], Annotated[Binning, Field(discriminator="kind")], int]]


@dataclass(frozen=True)
class SeriesTable:
    """The series of a part and how many ranks know each of them."""

    scalars: tuple[ScalarSeries, ...] = ()
    histograms: tuple[HistogramSeries, ...] = ()
    scalar_ranks: tuple[int, ...] = ()
    histogram_ranks: tuple[int, ...] = ()

    @classmethod
    def of(cls, part: Part) -> "SeriesTable":
        """Return the table of a part."""
        return cls(
            tuple(part.window.scalars),
            tuple(part.window.histograms),
            tuple(part.scalar_ranks.tolist()),
            tuple(part.histogram_ranks.tolist()),
        )

    def to_json(self) -> str:
        """Return the table as JSON text."""
        scalars = zip(self.scalars, self.scalar_ranks, strict=True)
        histograms = zip(self.histograms, self.histogram_ranks, strict=True)
        return _SeriesTable(
            scalars=[(series.name, series.context, series.reduce, ranks) for series, ranks in scalars],
            histograms=[(series.name, series.context, series.binning, ranks) for series, ranks in histograms],
        ).model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> "SeriesTable":
        """Read what ``to_json`` wrote."""
        table = _SeriesTable.model_validate_json(text)
        return cls(
            tuple(ScalarSeries(name, context, reduce) for name, context, reduce, _ in table.scalars),
            tuple(HistogramSeries(name, context, binning) for name, context, binning, _ in table.histograms),
            tuple(ranks for *_, ranks in table.scalars),
            tuple(ranks for *_, ranks in table.histograms),
        )


class Packer:
    """Packs the parts that go to one parent."""

    def __init__(self) -> None:
        self._table = SeriesTable()

    def pack(self, part: Part) -> bytes:
        """Return a part as bytes; the table of its series only where it differs from that of the part before."""
        table = SeriesTable.of(part)
        window = part.window
        head: dict[str, Any] = {"index": window.index, "steps": window.steps}
        head |= {"through": None if part.through == END else part.through}
        head |= {key: ranks for key, ranks in (("missing", part.missing), ("left", part.left)) if ranks}
        if table != self._table:
            head["table"] = table.to_json()
            self._table = table
        text = json.dumps(head, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        states = (window.lanes, window.moments, window.counts)
        return b"".join((_LENGTH.pack(len(text)), text, *(np.ascontiguousarray(state).tobytes() for state in states)))


class Unpacker:
    """Unpacks the parts that come from one child, and remembers its series."""

    def __init__(self) -> None:
        self._table = SeriesTable()

    def unpack(self, data: bytes | bytearray) -> Part:
        """Return the part in a message.

        Raises:
            ValueError: If the message is damaged.
        """
        (length,) = _LENGTH.unpack_from(data)
        head = json.loads(bytes(data[_LENGTH.size : _LENGTH.size + length]))
        if "table" in head:
            self._table = SeriesTable.from_json(head["table"])
        scalars, histograms = len(self._table.scalars), len(self._table.histograms)
        steps: list[int] = head["steps"]
        numbers = np.frombuffer(data, dtype=np.float64, offset=_LENGTH.size + length)
        lanes_end = len(steps) * LANES * scalars
        moments_end = lanes_end + histograms * MOMENTS
        window = HostWindow(
            index=head["index"],
            steps=steps,
            lanes=numbers[:lanes_end].reshape(len(steps), LANES, scalars),
            moments=numbers[lanes_end:moments_end].reshape(histograms, MOMENTS),
            counts=numbers[moments_end:].view(np.int64).reshape(histograms, HEADER + CELLS),
            scalars=list(self._table.scalars),
            histograms=list(self._table.histograms),
        )
        return Part(
            window,
            END if head["through"] is None else (head["through"][0], head["through"][1]),
            np.array(self._table.scalar_ranks, dtype=np.int64),
            np.array(self._table.histogram_ranks, dtype=np.int64),
            tuple((first, last) for first, last in head.get("missing", ())),
            tuple((first, last) for first, last in head.get("left", ())),
        )
