"""The points of a window as columns: small in memory, on disk and on their way, and records for whoever asks."""

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, Self, overload

import numpy as np
from typing_extensions import override

from .record import STATISTICS, Histogram, Record

# A named tuple's own constructor is Python code; while it runs, for every point, the training thread waits.
_make_record = functools.partial(tuple.__new__, Record)

TAKES_NOTHING_BACK = 2**62  # the first step of a window that writes none


@dataclass(frozen=True, eq=False)
class Points(Sequence[Record]):
    """Points in the order of their steps; of one step, numbers come before histograms.

    Attributes:
        series: Name and context of the series of numbers; some may have no point.
        places: Where each number's series is in ``series``, int64 of shape ``[numbers]``.
        steps: The step of each number, int64 of shape ``[numbers]``.
        times: When that step began, in seconds since the epoch, 0 if that is not known; float64 of that shape.
        values: The numbers, float64 of that shape.
        histograms: The points that are histograms.
        hparams: Hyperparameters that came after the run was opened, plain JSON values; stored before the points.
    """

    series: list[tuple[str, dict[str, str]]]
    places: np.ndarray
    steps: np.ndarray
    times: np.ndarray
    values: np.ndarray
    histograms: list[Record]
    hparams: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Sequence[Record]) -> Self:
        """Return records, in the order of their steps, as columns."""
        if isinstance(records, cls):
            return records
        numbers = [record for record in records if not isinstance(record.value, Histogram)]
        series: dict[tuple[str, int], tuple[int, dict[str, str]]] = {}
        places = [
            series.setdefault((record.name, id(record.context)), (len(series), dict(record.context)))[0]
            for record in numbers
        ]
        return cls(
            [(name, context) for (name, _), (_, context) in series.items()],
            np.array(places, dtype=np.int64),
            np.array([record.step for record in numbers], dtype=np.int64),
            np.array([record.time or 0.0 for record in numbers], dtype=np.float64),
            np.array([record.value for record in numbers], dtype=np.float64),
            [record for record in records if isinstance(record.value, Histogram)],
        )

    @classmethod
    def load(cls, data: bytes) -> Self:
        """Return what ``dump`` was given."""
        offset = 8 + int.from_bytes(data[:8], "little")
        about = json.loads(data[8:offset])

        def take(count: int, dtype: type) -> np.ndarray:
            nonlocal offset
            array = np.frombuffer(data, dtype=dtype, count=count, offset=offset)
            offset += array.nbytes
            return array

        kinds = (np.int64, np.int64, np.float64, np.float64)
        places, steps, times, values = (take(about["numbers"], kind) for kind in kinds)
        histograms = []
        for name, step, context, time, bins, *numbers in about["histograms"]:
            edges, counts = take(bins + 1, np.float64), take(bins, np.int64)
            histogram = Histogram(edges=edges, counts=counts, **dict(zip(STATISTICS, numbers, strict=True)))
            histograms.append(Record(name, step, context, histogram, time))
        series = [(name, context) for name, context in about["series"]]
        if len(places) and not 0 <= places.min() <= places.max() < len(series):
            raise ValueError("a number belongs to no series")
        return cls(series, places, steps, times, values, histograms, about["hparams"])

    def dump(self) -> bytes:
        """Return the points as bytes: a header of JSON, and the numbers as they are."""
        histograms: list[Any] = []
        arrays = [self.places, self.steps, self.times, self.values]
        for name, step, context, value, time in self.histograms:
            assert isinstance(value, Histogram)
            numbers = [getattr(value, number) for number in STATISTICS]
            histograms.append([name, step, dict(context), time, len(value.counts), *numbers])
            arrays += [value.edges, value.counts]
        about = {"numbers": len(self.values), "series": self.series, "histograms": histograms, "hparams": self.hparams}
        header = json.dumps(about).encode()
        return b"".join(
            [len(header).to_bytes(8, "little"), header, *(np.ascontiguousarray(array).tobytes() for array in arrays)]
        )

    def replaced(self, late: Iterable[Record], hparams: dict[str, Any] | None = None) -> Self:
        """Return these points and others, which replace those of the same series and step.

        Args:
            late: Points of any order; of one series and step, the last one counts.
            hparams: Replace the hyperparameters, if they are given.
        """

        def place(record: Record) -> tuple[Any, ...]:
            is_histogram = isinstance(record.value, Histogram)
            return record.name, frozenset(record.context.items()), record.step, is_histogram

        points, newest = self, {place(record): record for record in late}
        if newest:
            kept = [record for record in self if place(record) not in newest]
            points = self.of(sorted([*kept, *newest.values()], key=attrgetter("step")))
        return replace(points, hparams=self.hparams if hparams is None else hparams)

    @override
    def __len__(self) -> int:
        return len(self.values) + len(self.histograms)

    @override
    def __iter__(self) -> Iterator[Record]:
        """Return the records. No loop of Python runs over the numbers, which the training thread would wait for."""
        names = np.array([name for name, _ in self.series], dtype=object)[self.places]
        contexts = np.array([context for _, context in self.series], dtype=object)[self.places]
        times = self.times.tolist() if self.times.all() else [time or None for time in self.times.tolist()]
        columns = zip(names, self.steps.tolist(), contexts, self.values.tolist(), times, strict=True)
        numbers = map(_make_record, columns)
        return iter(sorted([*numbers, *self.histograms], key=attrgetter("step"))) if self.histograms else numbers

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    @override
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        return list(self)[index]

    @property
    def first(self) -> int:
        """The first step."""
        return min([*self.steps[:1].tolist(), *(record.step for record in self.histograms[:1])])

    @property
    def last(self) -> int:
        """The last step."""
        return max([*self.steps[-1:].tolist(), *(record.step for record in self.histograms[-1:])])

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the series that have points, sorted."""
        used = {self.series[place][0] for place in np.flatnonzero(np.bincount(self.places)).tolist()}
        return tuple(sorted(used | {record.name for record in self.histograms}))

    @property
    def nbytes(self) -> int:
        """What it takes in memory, about."""
        counts = sum(record.value.counts.nbytes for record in self.histograms if isinstance(record.value, Histogram))
        return 32 * len(self.values) + 2 * counts + 1000 * len(self.histograms)


@dataclass(frozen=True)
class Contents:
    """How many records a window has, of which series, up to which step, and how many bytes in memory.

    ``first`` is the first step that this window writes and no earlier one does: rewinding the run to it takes nothing
    else away.
    """

    first: int
    last: int
    records: int
    names: tuple[str, ...]
    memory: int = field(default=0, compare=False)

    @classmethod
    def of(cls, points: Points, first: int) -> Self:
        """Describe what a window has."""
        return cls(first, points.last if points else first, len(points), points.names, points.nbytes)
