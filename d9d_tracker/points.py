"""The points of a window as columns: small in memory and on their way, and records for whoever asks for them."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Self, overload

import numpy as np
from typing_extensions import override

from .record import Histogram, Record

# A named tuple's own constructor is Python code; while it runs, for every point, the training thread waits.
_make_record = functools.partial(tuple.__new__, Record)


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
    """

    series: list[tuple[str, dict[str, str]]]
    places: np.ndarray
    steps: np.ndarray
    times: np.ndarray
    values: np.ndarray
    histograms: list[Record]

    @classmethod
    def of(cls, records: Sequence[Record]) -> Self:
        """Return records as columns.

        Args:
            records: The points, in the order of their steps.
        """
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
