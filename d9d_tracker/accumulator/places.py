"""Places: what compiled and captured code holds instead of a slot. Which slot a place means is data on the device.

So a context is no guard: setting another one writes the table, and no code is compiled again.
"""

import logging
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from d9d_tracker.errors import TrackerValueError
from d9d_tracker.tracing import mark_static, outside_transforms
from d9d_tracker_kernels.device import GPU, gpu

from .event_wait import relaxed
from .registry import ContextItems, HistogramSeries, Registry, ScalarSeries, label

logger = logging.getLogger("d9d_tracker")

Series = ScalarSeries | HistogramSeries
_NOWHERE = -1
_PLACES_PER_SLOT = 4
_POOL = 32  # streams that CUDA deals out in turn: to us, and for captures


class Places:
    """The places of a run object. They are for life, as compiled code is; what they mean hangs on the run and context.

    Args:
        scalars: Gives scalar series their slots.
        histograms: Gives histogram series theirs.
        device: Where the buffers lie.

    Attributes:
        table: The slot that each place means now, int64 of shape ``[places]``, on the device; -1 for none.
    """

    def __init__(self, scalars: Registry[ScalarSeries], histograms: Registry[HistogramSeries], device: torch.device):
        self._scalars = scalars
        self._histograms = histograms
        # More than slots: a series that has none in this run may have one in the next.
        self._capacity = _PLACES_PER_SLOT * (scalars.capacity + histograms.capacity)
        self._slots: np.ndarray = np.full(self._capacity, _NOWHERE)
        self.table = torch.full((self._capacity,), _NOWHERE, dtype=torch.int64, device=device)
        mark_static(self.table)
        self._series: list[Series] = []  # with the context of the call alone
        self._places: dict[Series, int] = {}
        self._entries: dict[int, torch.Tensor] = {}  # of those places that handles have
        self._context: ContextItems = ()
        self._known: dict[ContextItems, list[int]] = {}  # what the places mean in each context of the run
        self._lock = threading.RLock()
        is_gpu = device.type == GPU
        self._stream, self._written = (gpu.Stream(device), gpu.Event()) if is_gpu else (None, None)

    def claim(self, series: Series) -> int:
        """Return the place of a series, giving it one when it is new; -1 if none is left, which is said.

        Args:
            series: The series, with the context of the call alone.

        Raises:
            TrackerValueError: If it was logged differently before.
        """
        with self._lock:
            slot = self._slot(series, self._context)
            place = self._places.get(series)
            if place is None:
                if len(self._series) == self._capacity:
                    logger.error(
                        "%s is dropped: compiled code has %d names already; raise accumulator.max_scalars",
                        label(series.name, series.context),
                        self._capacity,
                    )
                    return _NOWHERE
                place = self._places[series] = len(self._series)
                self._series.append(series)
            if self._slots[place] != slot:
                self._known.clear()
                self._slots[place] = slot
                self._write_one(place, slot)
            return place

    def entry(self, place: int) -> torch.Tensor:
        """Return what a handle holds: a table of this one place, int64 of shape ``[1]``, the same tensor each time.

        Its memory is its own, because regions of compiled code refuse inputs that share theirs.

        Args:
            place: The place.
        """
        if place not in self._entries:
            with torch.inference_mode(False):
                entry = torch.full((1,), self.slot(place), dtype=torch.int64, device=self.table.device)
            mark_static(entry)
            self._entries[place] = entry
        return self._entries[place]

    def slot(self, place: int) -> int:
        """Return the slot that a place means now, -1 for none.

        Args:
            place: The place.
        """
        return int(self._slots[place]) if place >= 0 else _NOWHERE

    def names(self, table: torch.Tensor) -> list[str]:
        """Return the names of the series that a table is for, if it is one of these.

        Args:
            table: The whole table, or an entry.
        """
        if table is self.table:
            return sorted({series.name for place, series in enumerate(self._series) if place not in self._entries})
        return [self._series[place].name for place, entry in self._entries.items() if table is entry and place >= 0]

    def start(self) -> None:
        """Mean nothing, until ``refill``: the slots of the run before are free."""
        self._known.clear()
        self._context = ()

    def refill(self, context: ContextItems) -> None:
        """Have every place mean the slot of its series in a context. Does not wait for the device.

        A series that has no slot there, because it was logged differently or all are taken, goes nowhere: said once.

        Args:
            context: The persistent context.
        """
        with self._lock:
            self._context = context
            slots = self._known.setdefault(context, [])
            for series in self._series[len(slots) :]:
                try:
                    slots.append(self._slot(series, context))
                except TrackerValueError as error:
                    slots.append(_NOWHERE)
                    logger.error("what compiled code logs there is dropped: %s", error)
            if self._slots[: len(slots)].tolist() != slots:
                self._slots[: len(slots)] = slots
                self._write_all(slots)

    def _slot(self, series: Series, context: ContextItems) -> int:
        if context:
            tags = dict(context) | dict(series.context)
            series = replace(series, context=tuple(sorted(tags.items())))
        if isinstance(series, ScalarSeries):
            return self._scalars.slot(series)
        return self._histograms.slot(series)

    # By way of .data: a backward that has saved the table is to see what it says then, and not to refuse it.

    def _write_one(self, place: int, slot: int) -> None:
        if self._written is None or not gpu.is_current_stream_capturing():
            self._fill(place, slot)
            return
        # A graph that captured it would write this slot again at each replay. So it is written now, by another stream,
        # and waited for: the first replay may come on any.
        with relaxed() as may_wait, gpu.stream(self._stream_apart()):
            self._fill(place, slot)
            self._written.record()
            if may_wait:
                self._written.synchronize()

    def _stream_apart(self) -> Any:
        """Return the stream of writes during captures. Captures take theirs from the same pool; it must be none."""
        for _ in range(_POOL):
            with gpu.stream(self._stream):
                if not gpu.is_current_stream_capturing():
                    break
            self._stream = gpu.Stream(self.table.device)
        return self._stream

    def _fill(self, place: int, slot: int) -> None:
        with outside_transforms():
            self.table.data[place].fill_(slot)
            if place in self._entries:
                self._entries[place].data.fill_(slot)

    def _write_all(self, slots: list[int]) -> None:
        if self._written is not None:
            gpu.current_stream(self.table.device).wait_event(self._written)
        # Fresh pinned memory, which is kept until it has been copied: the host may go on and write the next.
        host = torch.tensor(slots, dtype=torch.int64, device="cpu", pin_memory=self.table.device.type == GPU)
        self.table.data[: len(slots)].copy_(host, non_blocking=True)
        if self._entries:
            entries = [entry.data for entry in self._entries.values()]
            # The numbers travel as arguments of the launches.
            torch.ops.aten._foreach_zero_.default(entries)
            torch.ops.aten._foreach_add_.ScalarList(entries, [self.slot(place) for place in self._entries])
