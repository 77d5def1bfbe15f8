"""Places: what compiled and captured code holds instead of a slot. Which slot a place means is data on the device.

So a context is no guard: setting another one writes the table, and no code is compiled again.
"""

import threading
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from d9d_tracker.devices.event_wait import relaxed
from d9d_tracker.errors import TrackerValueError
from d9d_tracker.log import logger
from d9d_tracker.series.registry import Registry
from d9d_tracker.series.series import ContextItems, HistogramSeries, ScalarSeries, label
from d9d_tracker.tracing import for_real, mark_static
from d9d_tracker_kernels.device import GPU, gpu

Series = ScalarSeries | HistogramSeries
_NOWHERE = -1
_MOST_PLACES = 2**16
_POOL = 32  # streams that CUDA deals out in turn: to us, and for captures
# Those of the process, for life, as compiled code is: by the series, with the context of the call alone.
_places: dict[Series, int] = {}


def names_of_places() -> list[str]:
    """Return the names of the series of all places."""
    return [series.name for series in _places]


class Target(NamedTuple):
    """Where the values of a call go: decided once, for code that runs as it is written, is captured, or is compiled.

    Attributes:
        at: A place in the table for each value.
        table: Which slot each place means, int64 on the device. In eager code it is one in which place k is slot k, so
            that a GPU runs the same kernels as when the step is captured.
        is_handle: Whether the table is a handle's.
    """

    at: list[int]
    table: torch.Tensor
    is_handle: bool = False


@dataclass
class Entry:
    """What a handle holds: a table of one place. Its memory is its own: regions refuse inputs that share theirs.

    Attributes:
        table: int64 of shape ``[1]``, on the device.
        slot: What it says; -1 for none.
    """

    table: torch.Tensor
    slot: int


class Places:
    """Which slot each place, and each handle, means in a run; it hangs on the context.

    Args:
        scalars: Gives scalar series their slots.
        histograms: Gives histogram series theirs.
        device: Where the buffers lie.

    Attributes:
        table: The slot that each place means now, int64 of shape ``[places]``, on the device; -1 for none.
        context: The one that compiled code logs under.
        claimed: The places of series that code was traced or captured with here, with the context of the call alone.
    """

    def __init__(self, scalars: Registry[ScalarSeries], histograms: Registry[HistogramSeries], device: torch.device):
        self._scalars = scalars
        self._histograms = histograms
        self.table = torch.full((_MOST_PLACES,), _NOWHERE, dtype=torch.int64, device=device)
        mark_static(self.table)
        self.claimed: dict[Series, int] = {}
        self._series: dict[Series, int] = {}  # also what was adopted
        self._entries: dict[Series, Entry] = {}
        self._adopted: dict[str, int] = {}  # how many of another run's series
        self._told: dict[Series, int] = {}  # what the device knows
        self.context: ContextItems = ()
        self._known: dict[ContextItems, dict[Series, int]] = {}  # their slots in each context of the run
        self._lock = threading.RLock()
        scalars.replaced = histograms.replaced = self._withdraw
        is_gpu = device.type == GPU
        self._stream, self._written = (gpu.Stream(device), gpu.Event()) if is_gpu else (None, None)

    def claim(self, series: Series) -> int:
        """Return the place of a series, with the context of the call alone; -1 if none is left, which is said."""
        with self._lock:
            slot = self._slot(series, self.context)
            place = _places.setdefault(series, len(_places))
            if place >= _MOST_PLACES:
                name = label(series.name, series.context)
                logger.error("%s is dropped: compiled code of this process has %d names already", name, _MOST_PLACES)
                return _NOWHERE
            self.claimed[series] = place
            self._add(series, place, slot)
            return place

    def adopt(self, token: str, claimed: dict[Series, int]) -> None:
        """Give what code that was compiled for another run may log to its slots here."""
        with self._lock:
            for series in list(claimed)[self._adopted.get(token, 0) :]:
                self._add(series, claimed[series], self._slot_if_it_fits(series, self.context))
            self._adopted[token] = len(claimed)

    def entry(self, series: Series) -> Entry:
        """Return what a handle of a series, with the context of the handle alone, holds: the same each time."""
        with self._lock:
            slot = self._slot(series, self.context)
            if series not in self._entries:
                with torch.inference_mode(False), for_real():
                    table = torch.full((1,), slot, dtype=torch.int64, device=self.table.device)
                mark_static(table)
                self._entries[series] = Entry(table, slot)
            self._tell(series, slot)
            return self._entries[series]

    def slot(self, series: Series, context: ContextItems) -> int:
        """Return the slot of a series in a context, -1 for none; said once."""
        with self._lock:
            known = self._known.setdefault(context, {})
            if series not in known:
                known[series] = self._slot_if_it_fits(series, context)
            return known[series]

    def names(self, table: torch.Tensor) -> list[str]:
        """Return the names of the series that a table is for, if it is one of these."""
        if table is self.table:
            return sorted({series.name for series in self._series})
        return [series.name for series, entry in self._entries.items() if table is entry.table]

    def start(self) -> None:
        """Mean nothing, until ``refill``: the slots of the run before are free."""
        self._known.clear()
        self.context = ()

    def refill(self, context: ContextItems) -> None:
        """Have every place and handle mean the slot of its series in a context. Does not wait for the device.

        A series that has no slot there, because it was logged differently or all are taken, goes nowhere: said once.
        """
        with self._lock:
            self.context = context
            all_series = dict.fromkeys((*self._series, *self._entries))
            for series in all_series:
                self.slot(series, context)
            told = {series: self.slot(series, context) for series in all_series}  # one may have withdrawn another
            if told != self._told:
                self._told = told
                self._write_all()

    def _add(self, series: Series, place: int, slot: int) -> None:
        if series not in self._series:
            self._series[series] = place
            self._told.pop(series, None)  # what was told was for its handle
        self._tell(series, slot)

    def _tell(self, series: Series, slot: int) -> None:
        self._known.setdefault(self.context, {})[series] = slot
        if self._told.get(series) != slot:
            self._told[series] = slot
            self._write_one(series, slot)

    def _withdraw(self, series: Series, slot: int) -> None:
        """Have what was adopted and contradicts a series that is logged, in whose slot it is, mean nothing."""
        with self._lock:
            for context, known in list(self._known.items()):
                for other in [one for one, its in known.items() if its == slot and type(one) is type(series)]:
                    if other.describe() != series.describe():
                        name, how = label(series.name, series.context), series.describe()
                        # No warning: that code of an earlier run may log it does not say that it is ever called here.
                        logger.info("what code of an earlier run logs to %s goes nowhere: it has %s here", name, how)
                        known[other] = _NOWHERE
                        if context == self.context:
                            self._tell(other, _NOWHERE)

    def _slot_if_it_fits(self, series: Series, context: ContextItems) -> int:
        try:
            return self._slot(series, context, series in self.claimed or series in self._entries)
        except TrackerValueError as error:
            logger.error("what compiled code logs there is dropped: %s", error)
            return _NOWHERE

    def _slot(self, series: Series, context: ContextItems, is_sure: bool = True) -> int:
        if context:
            tags = dict(context) | dict(series.context)
            series = replace(series, context=tuple(sorted(tags.items())))
        if isinstance(series, ScalarSeries):
            return self._scalars.slot(series, is_sure)
        return self._histograms.slot(series, is_sure)

    # By way of .data: a backward that has saved the table is to see what it says then, and not to refuse it.

    def _write_one(self, series: Series, slot: int) -> None:
        if self._written is None or not gpu.is_current_stream_capturing():
            self._fill(series, slot)
            return
        # A graph that captured it would write this slot again at each replay. So it is written now, by another stream,
        # and waited for: the first replay may come on any.
        with relaxed() as may_wait, gpu.stream(self._stream_apart()):
            self._fill(series, slot)
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

    def _fill(self, series: Series, slot: int) -> None:
        with for_real():
            if series in self._series:
                self.table.data[self._series[series]].fill_(slot)
            if series in self._entries:
                self._entries[series].slot = slot
                self._entries[series].table.data.fill_(slot)

    def _write_all(self) -> None:
        if self._written is not None:
            gpu.current_stream(self.table.device).wait_event(self._written)
        # Fresh pinned memory, which is kept until it has been copied: the host may go on and write the next.
        places = list(self._series.values())
        slots = np.full(max(places, default=-1) + 1, _NOWHERE)
        slots[places] = [self._told[series] for series in self._series]
        with for_real():
            host = torch.tensor(slots, device="cpu", pin_memory=self.table.device.type == GPU)
            self.table.data[: len(slots)].copy_(host, non_blocking=True)
            for series, entry in self._entries.items():
                entry.slot = self._told[series]
            if self._entries:
                tables = [entry.table.data for entry in self._entries.values()]
                # The numbers travel as arguments of the launches.
                torch.ops.aten._foreach_zero_.default(tables)
                torch.ops.aten._foreach_add_.ScalarList(tables, [entry.slot for entry in self._entries.values()])
