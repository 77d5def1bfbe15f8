"""Handles: series that a module holds, so that code shared by many modules logs each of them under its own name."""

from typing import Any

import torch
from typing_extensions import override

from d9d_tracker.base import BinsHandle, ScalarHandle

from .arguments import Number
from .places import Places
from .reductions import Reduction
from .registry import HistogramSeries, ScalarSeries
from .target import Target

# What compiled code reads of a handle is a guard, and handles that differ in it share no code. So it reads neither the
# series nor the place: a table of its own, of one place, is its input.


class AccumulatingScalarHandle(ScalarHandle):
    """A scalar series, from ``AccumulatingRun.scalar_series``.

    Args:
        run: Where it logs.
        series: The series, with the context of the handle alone.
        places: Gives it its place.

    Attributes:
        series: The same.
        reduce: The reduction.
        entry: Says which slot it has now.
        target: Where it writes: its table.
    """

    def __init__(self, run: Any, series: ScalarSeries, places: Places):
        super().__init__(run, series.name, dict(series.context))
        self._run = run
        self.series = series
        self.reduce: Reduction = series.reduce
        self.entry = places.entry(series)
        self.target = Target([0], self.entry.table, is_handle=True)

    @override
    def scalar(self, value: Number, *, weight: Number | None = None) -> None:
        """Merge one number into the point of the current step.

        Args:
            value: See ``AccumulatingRun.scalar``.
            weight: See ``AccumulatingRun.scalar``.

        Raises:
            TrackerTypeError: See ``AccumulatingRun.scalar``.
            TrackerValueError: See ``AccumulatingRun.scalar``.
        """
        self._run.merge_at(self, value, weight)


class AccumulatingBinsHandle(BinsHandle):
    """A histogram series, from ``AccumulatingRun.bins_series``.

    Args:
        run: Where it logs.
        series: The series, with the context of the handle alone.
        every: Its cadence in steps.
        places: Gives it its place.

    Attributes:
        series: The same.
        parameters: Cadence and binning, as the operators take them.
        target: Where it writes: a table of its own.
    """

    def __init__(self, run: Any, series: HistogramSeries, every: int, places: Places):
        super().__init__(run, series.name, dict(series.context))
        self._run = run
        self.series = series
        self.parameters = (every, *series.binning.parameters())
        self.target = Target([0], places.entry(series).table, is_handle=True)

    @override
    def bins(self, values: torch.Tensor) -> None:
        """Count a population into the histogram of the current window.

        Args:
            values: See ``AccumulatingRun.bins``.

        Raises:
            TrackerTypeError: See ``AccumulatingRun.bins``.
            TrackerValueError: See ``AccumulatingRun.bins``.
        """
        self._run.count_at(self, values)
