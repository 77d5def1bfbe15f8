"""Histograms of a run: from names and populations to what is counted into the bank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from typing_extensions import override

from d9d_tracker.bank.places import Places, Target
from d9d_tracker.base import BinsHandle
from d9d_tracker.compiled.effects import add_counts_with_effect, histogram_with_effect
from d9d_tracker.compiled.regions import has_effect_here, refuse_effect_here
from d9d_tracker.compiled.slots import counts_at, histogram_at, histogram_series, token_of
from d9d_tracker.config import Binning
from d9d_tracker.errors import TrackerTypeError, TrackerValueError, fail
from d9d_tracker.record import Histogram
from d9d_tracker.series.series import ContextItems, HistogramSeries, Named, label
from d9d_tracker.tracing import is_backward_traced

from .arguments import check_counts, check_mapping, check_names, check_population
from .calls import WHAT_A_HANDLE_LOGS, Calls, Scope
from .find_binning import find_binning


class HistogramCalls(Calls):
    """Everything that logs a population."""

    def bins(
        self,
        name: str,
        values: torch.Tensor,
        context: dict[str, str] | None = None,
        *,
        binning: Binning | None = None,
        every: int | None = None,
        scope: Scope = "global",
    ) -> None:
        """Count a population into the histogram of the current window.

        Args:
            name: Name of the series.
            values: The population: any shape and stride, float16, bfloat16, float32, float64, bool or an integer
                dtype, on any device. An empty tensor gives an empty histogram. Of a ``DTensor`` the
                local shard is counted, without communication, and what its mesh replicates on one rank only. A plain
                tensor counts on every rank that logs it.
            context: Tags for this population alone; merged with the persistent context, over which they win.
            binning: How to bin it; a series has one binning. By default the one of the configuration.
            every: Count on steps divisible by this only; the others skip the work on the device. By default the one of
                the configuration.
            scope: ``"global"`` counts the values of all ranks together; ``"rank"`` keeps a series for each rank, with
                the context ``rank=<r>``.

        Raises:
            TrackerTypeError: If it is not a tensor, or one that cannot be binned (complex, quantized, sparse, partial).
            TrackerValueError: If it lies where it cannot be counted, ``every`` is not positive, the name is empty, the
                binning is not that of the series.
        """
        self._count([name], [values], context, binning, every, scope)

    def bins_many(
        self,
        values: Mapping[str, torch.Tensor],
        context: dict[str, str] | None = None,
        *,
        binning: Binning | None = None,
        every: int | None = None,
        scope: Scope = "global",
    ) -> None:
        """Count many populations with one kernel launch per dtype: the gradients of a model, for example.

        Args:
            values: Name and population of each series; see ``bins``.
            context: Tags for these populations alone; merged with the persistent context, over which they win.
            binning: How to bin all of them; see ``bins``.
            every: Count on steps divisible by this only; see ``bins``.
            scope: See ``bins``.

        Raises:
            TrackerTypeError: See ``bins``; none of the populations is counted then.
            TrackerValueError: See ``bins``; none of the populations is counted then.
        """
        check_mapping("bins_many", values)
        self._count(list(values.keys()), list(values.values()), context, binning, every, scope)

    def counts(
        self,
        name: str,
        values: torch.Tensor,
        context: dict[str, str] | None = None,
        *,
        every: int | None = None,
        scope: Scope = "global",
    ) -> None:
        """Add counts that are counts already: tokens of each expert, actions, classes.

        The series is a histogram with a bin for each index: what ``bins`` with ``IntegerBinning(n)`` would give for a
        population in which each index ``k`` occurs ``values[k]`` times.

        Args:
            name: Name of the series.
            values: An integer dtype, not negative, of shape ``[n]`` with 1 to 2046 counts, on any device;
                ``n`` is that of the series. Of a replicated ``DTensor`` one rank's copy counts.
            context: Tags for these counts alone; merged with the persistent context, over which they win.
            every: See ``bins``.
            scope: See ``bins``.

        Raises:
            TrackerTypeError: If it is no tensor of integers, or split across ranks.
            TrackerValueError: If it is not a vector of 1 to 2046, lies where it cannot be counted, ``every`` is not
                positive, the name is empty, or the series has another ``n``.
        """
        check_names([name])
        if self._is_silent(name) or self._is_repeated(name):
            return
        items = self._items_of_bins(name, context, scope)
        vector, counts = check_counts(name, items, values, self.buffers.device)
        held, buffers = self.holds_places(), self.buffers
        bins = len(range(vector.shape[0]))  # which makes a number of a symbol
        at, cadence = counts_at(self.key, held, name, items, bins, every)
        if not counts or at < 0:
            return
        table = self._table(held)
        if not torch.compiler.is_compiling():
            buffers.change(buffers.add_counts, vector, at, cadence, table)
        elif self._has_effect([vector]):
            add_counts_with_effect(token_of(self.key), vector, at, cadence)
        else:
            buffers.add_counts(vector, at, cadence, table)

    @override
    def histogram(
        self,
        name: str,
        histogram: Histogram,
        context: dict[str, str] | None = None,
        *,
        binning: Binning | None = None,
        scope: Scope = "global",
    ) -> None:
        """Merge a finished histogram into that of the current window, on the host, between compiled calls.

        Its values are counted as those of ``bins`` are: they add up with others of the window and of other ranks.

        Args:
            name: Name of the series.
            histogram: The histogram. Every bin must lie within one bin of the series.
            context: Tags for this histogram alone; merged with the persistent context, over which they win.
            binning: The binning of the series. By default one that has the histogram's own bins: that of the
                configuration, an exponential one, that of integers, or equal bins.
            scope: See ``bins``.

        Raises:
            TrackerTypeError: If it is no histogram.
            TrackerValueError: If its edges fit no binning, or not that of the series; or see ``bins``.
        """
        self._refuse_inside_graphs("histogram")
        check_names([name])
        if self._is_silent(name) or self._is_repeated(name):
            return
        items = self._items_of_bins(name, context, scope)
        if not isinstance(histogram, Histogram):
            raise TrackerTypeError(f"{label(name, items)}: pass a Histogram, not {type(histogram).__name__}")
        chosen = find_binning(histogram, self.config.binning) if binning is None else binning
        if chosen is None:
            raise TrackerValueError(
                f"{label(name, items)}: bins of unequal widths merge with nothing; have the backend take the histogram "
                "as it is, by a function for run.backend that calls its.histogram(name, histogram)"
            )
        series, _ = histogram_series(self.config, name, items, chosen, 1)
        try:
            counts, moments = histogram.to_cells(chosen)
        except ValueError as error:
            raise TrackerValueError(f"{label(name, items)}: {error}; bin it by {chosen!r}") from None
        row = self.buffers.histogram_series.slot(series)
        if row >= 0:
            self.buffers.change(self.buffers.merge_histogram, row, counts, moments)

    @override
    def bins_series(
        self,
        name: str,
        context: dict[str, str] | None = None,
        *,
        binning: Binning | None = None,
        every: int | None = None,
        scope: Scope = "global",
    ) -> AccumulatingBinsHandle:
        """Return a handle of a histogram series, for a module to hold: ``handle.bins(values)`` in place of ``bins``.

        Args:
            name: Name of the series.
            context: Tags of the series; merged with the persistent context, over which they win.
            binning: See ``bins``.
            every: See ``bins``.
            scope: See ``bins``.

        Raises:
            TrackerTypeError: If the name, the context or the binning is none.
            TrackerValueError: See ``scalar_series``; or if ``every`` is not positive.
        """
        self._refuse_inside_graphs("bins_series")
        check_names([name])
        items = self._items_of_bins(name, context, scope, handle=True)
        series, cadence = histogram_series(self.config, name, items, binning, every)
        return AccumulatingBinsHandle(self, series, cadence, self.buffers.places)

    def count_at(self, handle: AccumulatingBinsHandle, values: Any) -> None:
        """Count a population into the series of a handle; see ``AccumulatingBinsHandle.bins``."""
        if self._is_silent(WHAT_A_HANDLE_LOGS) or self._is_refused(handle):
            return
        population = self._population(handle, (), values)
        if population is None:
            return
        is_traced, slots = torch.compiler.is_compiling(), self.buffers.histograms.places
        target = handle.target if is_traced else self._target(handle, slots)
        if target.at:
            self._write_bins(target, [population], handle.parameters)

    def _population(self, name: str | Named, items: ContextItems, values: object) -> torch.Tensor | None:
        """Return what of a population is counted here; None if another rank does, so that no watch misses it here."""
        population, counts = check_population(name, items, values, self.buffers.device)
        if counts:
            # In inference mode, compiled code cannot view what was made outside, not even to detach it.
            return population.detach() if torch.is_grad_enabled() else population
        if not torch.compiler.is_compiling():
            self.promises.withdraw([name if isinstance(name, str) else name.name])
        return None

    def _count(
        self,
        names: list[str],
        values: list[torch.Tensor],
        context: dict[str, str] | None,
        binning: Binning | None,
        every: int | None,
        scope: Scope,
    ) -> None:
        check_names(names)
        if not names or self._is_silent(names[0]) or self._is_repeated(names[0]):
            return
        items = self._items_of_bins(names[0], context, scope)
        held = self.holds_places()
        populations: list[torch.Tensor] = []
        at: list[int] = []
        parameters: list[Any] = []
        for name, value in zip(names, values, strict=True):
            population = self._population(name, items, value)
            place, *parameters = histogram_at(self.key, held, name, items, binning, every)
            if population is not None and place >= 0:
                populations.append(population)
                at.append(place)
        if at:
            self._write_bins(Target(at, self._table(held)), populations, parameters)

    def _items_of_bins(
        self, name: str, context: dict[str, str] | None, scope: Scope, handle: bool = False
    ) -> ContextItems:
        if scope == "spread":
            fail(TrackerValueError, f"series {name!r}: scope='spread' is of scalars; use 'global' or 'rank'")
        return self._items(name, context, scope, handle)

    def _table(self, held: bool) -> torch.Tensor:
        return self.buffers.places.table if held else self.buffers.histograms.places

    def _write_bins(self, target: Target, populations: list[torch.Tensor], parameters: Sequence[Any]) -> None:
        buffers = self.buffers
        if not torch.compiler.is_compiling():
            buffers.change(buffers.count, target, populations, *parameters)
        elif self._has_effect(populations, target.is_handle):
            table = target.table if target.is_handle else None
            histogram_with_effect(token_of(self.key), table, populations, target.at, *parameters)
        else:
            buffers.count(target, populations, *parameters)

    def _has_effect(self, populations: Sequence[torch.Tensor], is_handle: bool = False) -> bool:
        """Tell, while tracing, whether to count by an operator with an effect."""
        if is_backward_traced() or has_effect_here(is_handle):
            return True
        has_bank = self.buffers.has_bank(populations)
        if not has_bank:
            refuse_effect_here()
        return not has_bank


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
        entry: Says which slot it has now.
        target: Where code that runs again without Python writes: its table.
    """

    def __init__(self, run: HistogramCalls, series: HistogramSeries, every: int, places: Places):
        super().__init__(run, series.name, dict(series.context))
        self._run = run
        self.series = series
        self.parameters = (every, *series.binning.parameters())
        self.entry = places.entry(series)
        self.target = Target([0], self.entry.table, is_handle=True)

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
