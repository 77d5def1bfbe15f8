"""Scalars of a run: from names and numbers to what is written into the bank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from typing_extensions import override

from d9d_tracker.bank.host_scalars import as_number
from d9d_tracker.bank.placement import norm_of
from d9d_tracker.bank.places import Places, Target
from d9d_tracker.bank.scalars import Number
from d9d_tracker.base import ScalarHandle
from d9d_tracker.compiled.effects import merge_scalars_with_effect
from d9d_tracker.compiled.regions import has_effect_here, refuse_effect_here
from d9d_tracker.compiled.slots import scalar_at, scalar_series, token_of
from d9d_tracker.compiled.traced_scalars import note
from d9d_tracker.errors import TrackerValueError, fail
from d9d_tracker.series.series import Reduction, ScalarSeries, label
from d9d_tracker.tracing import begin_inputs, end_inputs, is_backward_traced, is_plain

from .arguments import check_mapping, check_names, check_number, numbers_among
from .calls import WHAT_A_HANDLE_LOGS, Calls, Scope


class ScalarCalls(Calls):
    """Everything that logs a number."""

    def scalar(
        self,
        name: str,
        value: Number,
        context: dict[str, str] | None = None,
        *,
        reduce: Reduction = "mean",
        weight: Number | None = None,
        scope: Scope = "global",
    ) -> None:
        """Merge one number into the point of the current step.

        Args:
            name: Name of the series.
            value: A number, or a tensor of one element, of any real dtype. It is detached, never kept alive. A
                ``DTensor`` is replicated, every rank's copy counting, or partial (sum, avg, a norm; min and max in a
                series of that reduction): then the ranks' parts become the whole when their windows meet. Compiled
                code copies a tensor on the CPU to the device without a wait; in pinned memory it must therefore keep
                its value for the step.
            context: Tags for this value alone; merged with the persistent context, over which they win.
            reduce: How several values of one step combine; a series has one reduction.
            weight: Weight in a mean, a number or a tensor of one element: the number of tokens, for example.
            scope: ``"global"`` combines the values of all ranks, ``last`` being that of the highest rank with a value
                in the step; ``"rank"`` keeps a series for each rank, with the context ``rank=<r>``; ``"spread"`` gives
                four for any number of ranks: ``<name>/min``, ``/mean``, ``/max`` and ``/max_rank``.

        Raises:
            TrackerTypeError: If the value is neither a real number nor a real tensor.
            TrackerValueError: If the tensor has not exactly one element, or lies where it cannot be read, the name is
                empty, or the reduction is not that of the series.
        """
        if (
            torch.compiler.is_compiling()
            and type(name) is str
            and weight is None
            and scope == "global"
            and self.is_open
        ):
            items = () if context is None and not self._tags else self._items(name, context, scope)
            if note(self, [name], [value], items, reduce):
                return
        if not self._merge_on_host((name,), (value,), context, reduce, weight, scope):
            self._merge([name], [value], context, reduce, weight, scope)

    def scalars(
        self,
        values: Mapping[str, Number],
        context: dict[str, str] | None = None,
        *,
        reduce: Reduction = "mean",
        weight: Number | None = None,
        scope: Scope = "global",
    ) -> None:
        """Merge many numbers at once: cheaper to run, and to compile, than as many ``scalar`` calls.

        Args:
            values: Name and value of each series; see ``scalar``. What is None, text or a collection, as there may be
                among the metrics of a framework, is left out and named once.
            context: Tags for these values alone; merged with the persistent context, over which they win.
            reduce: How several values of one step combine; a series has one reduction.
            weight: Weight of all the values in a mean.
            scope: See ``scalar``.

        Raises:
            TrackerTypeError: See ``scalar``.
            TrackerValueError: See ``scalar``.
        """
        check_mapping("scalars", values)
        names, numbers = list(values.keys()), list(values.values())
        if torch.compiler.is_compiling() and names and weight is None and scope == "global" and self.is_open:
            items = () if context is None and not self._tags else self._items(names[0], context, scope)
            is_named = not [name for name in names if type(name) is not str]
            if is_named and note(self, names, numbers, items, reduce):
                return
        if self._merge_on_host(names, numbers, context, reduce, weight, scope):
            return
        used = numbers_among(names, numbers)
        if len(used) < len(names):
            names, numbers = [names[index] for index in used], [numbers[index] for index in used]
            if self._merge_on_host(names, numbers, context, reduce, weight, scope):
                return
        self._merge(names, numbers, context, reduce, weight, scope)

    @override
    def scalar_series(
        self,
        name: str,
        context: dict[str, str] | None = None,
        *,
        reduce: Reduction = "mean",
        scope: Scope = "global",
    ) -> AccumulatingScalarHandle:
        """Return a handle of a scalar series, for a module to hold: ``handle.scalar(value)`` in place of ``scalar``.

        Blocks of one class that are compiled one by one share their code if each logs to its own handle, where names
        would be constants of the code. Make it outside of compiled code. It is good for the life of the tracker.

        Args:
            name: Name of the series.
            context: Tags of the series; merged with the persistent context, over which they win.
            reduce: See ``scalar``.
            scope: See ``scalar``.

        Raises:
            TrackerTypeError: If the name or the context is none.
            TrackerValueError: If it is called in compiled code, the name is empty, or the series was logged differently
                before.
        """
        self._refuse_inside_graphs("scalar_series")
        check_names([name])
        items = self._items(name, context, scope, handle=True)
        series = scalar_series(name, items, reduce, 1.0, scope == "spread")
        return AccumulatingScalarHandle(self, series, self.buffers.places)

    def merge_at(self, handle: AccumulatingScalarHandle, value: Any, weight: Number | None) -> None:
        """Merge one number into the series of a handle; see ``AccumulatingScalarHandle.scalar``."""
        if torch.compiler.is_compiling():
            begin_inputs()
            for number in (value, weight):
                isinstance(number, torch.Tensor)
            end_inputs()
        elif self._merge_handle_on_host(handle, value, weight):
            return
        if self._is_silent(WHAT_A_HANDLE_LOGS) or self._is_refused(handle):
            return
        if weight is not None and handle.reduce != "mean":
            fail(TrackerValueError, f"series {handle.name!r}: a weight has no meaning with reduce={handle.reduce!r}")
        device = self.buffers.device
        number = check_number(handle, (), value, device, handle.reduce)
        factor = None if weight is None else check_number(handle, (), weight, device)
        if norm_of(value) != 1.0:
            fail(TrackerValueError, f"series {handle.name!r}: a handle takes no partial norm; log it with run.scalar")
        target = handle.target if torch.compiler.is_compiling() else self._target(handle, self.buffers.scalars.places)
        if target.at:
            self._write(target, [number], handle.reduce, factor)

    def _merge_on_host(
        self,
        names: Sequence[str],
        values: Sequence[Any],
        context: dict[str, str] | None,
        reduce: Reduction,
        weight: Number | None,
        scope: Scope,
    ) -> bool:
        """Merge numbers as almost every call does, quickly; False, with nothing done, if there is more to the call."""
        if torch.compiler.is_compiling():
            return False
        host = self.buffers.host
        if host is None or not names or not self.is_open or scope != "global" or not is_plain():
            return False
        factor = 1.0
        if weight is not None:
            factor = as_number(weight)
            if factor is None or reduce != "mean":
                return False
        items = self._contexts.get() if context is None else self._items(names[0], context, scope)
        try:
            slots = [host.known[name, items, reduce] for name in names]
        except (KeyError, TypeError):  # the first time; no name at all
            return False
        numbers = [number for number in map(as_number, values) if number is not None]
        if len(numbers) < len(slots):
            return False
        self.buffers.change(host.merge, slots, numbers, reduce, factor)
        return True

    def _merge_handle_on_host(self, handle: AccumulatingScalarHandle, value: Any, weight: Number | None) -> bool:
        """See ``_merge_on_host``."""
        host = self.buffers.host
        if host is None or not self.is_open or not is_plain() or (weight is not None and handle.reduce != "mean"):
            return False
        number, factor = as_number(value), 1.0 if weight is None else as_number(weight)
        if number is None or factor is None:
            return False
        context, places = self._contexts.get(), self.buffers.places
        slot = handle.entry.slot if context == places.context else places.slot(handle.series, context)
        self.buffers.change(host.merge, (slot,), (number,), handle.reduce, factor)
        return True

    def _merge(
        self,
        names: list[str],
        values: list[Any],
        context: dict[str, str] | None,
        reduce: Reduction,
        weight: Number | None,
        scope: Scope,
    ) -> None:
        if torch.compiler.is_compiling():
            begin_inputs()
            for value in (*values, weight):
                isinstance(value, torch.Tensor)
            end_inputs()
        check_names(names)
        if not names or self._is_silent(names[0]) or self._is_repeated(names[0]):
            return
        items = self._items(names[0], context, scope)
        if weight is not None and reduce != "mean":
            fail(TrackerValueError, f"{label(names[0], items)}: a weight has no meaning with reduce={reduce!r}")
        device = self.buffers.device
        numbers = [check_number(name, items, value, device, reduce) for name, value in zip(names, values, strict=True)]
        factor = None if weight is None else check_number(f"{names[0]} (weight)", items, weight, device)
        roots = [norm_of(value) for value in values]
        spread = scope == "spread"
        held, key = self.holds_places(), self.key
        at = [scalar_at(key, held, n, items, reduce, r, spread) for n, r in zip(names, roots, strict=True)]
        host = self.buffers.host
        if not held and host is not None and scope == "global" and set(roots) == {1.0} and -1 not in at:
            host.known.update(zip([(name, items, reduce) for name in names], at, strict=True))
        if -1 in at:  # none was left
            numbers = [number for number, one in zip(numbers, at, strict=True) if one >= 0]
            at = [one for one in at if one >= 0]
        if at:
            table = self.buffers.places.table if held else self.buffers.scalars.places
            self._write(Target(at, table), numbers, reduce, factor)

    def _write(self, target: Target, numbers: list[Number], reduce: Reduction, weight: Number | None) -> None:
        buffers, scalars = self.buffers, self.buffers.scalars
        is_traced, has_bank = torch.compiler.is_compiling(), buffers.has_bank((*numbers, weight))
        if not is_traced and (has_bank or is_plain()):
            buffers.change(buffers.merge, target, numbers, reduce, weight)
        elif not has_bank or is_backward_traced() or has_effect_here(target.is_handle):
            if is_traced and not has_bank:
                refuse_effect_here()
            arguments = scalars.effect_arguments(target.at, numbers, reduce, weight)
            table = target.table if target.is_handle or not is_traced else None
            merge_scalars_with_effect(token_of(self.key), table, *arguments)
        else:
            scalars.write(target, numbers, reduce, weight)


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
        target: Where code that runs again without Python writes: its table.
    """

    def __init__(self, run: ScalarCalls, series: ScalarSeries, places: Places):
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
