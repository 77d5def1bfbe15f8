"""Where values go that are on other devices than the bank: counted or kept there, and merged when the window ends.

Of a device without a bank of its own (mps, xpu, npu), only what every backend of torch has is used: no float64,
streams, kernels or float atomics. Scalars, and populations of few elements, are kept as they are; larger ones are
counted there. When the window ends, all of it is copied at once, the only time the host waits.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from d9d_tracker.devices.arrived import Arrived, Entry, Parts, Store, merge_counts, merge_scalars, merge_vector
from d9d_tracker.devices.counting import can_count, count_there, merge_statistics
from d9d_tracker.devices.streams import Streams
from d9d_tracker.windows.clock import Clock
from d9d_tracker_kernels.bank import HistogramState, allocate
from d9d_tracker_kernels.binning import LAST_STEP, Moment
from d9d_tracker_kernels.device import GPU
from d9d_tracker_kernels.reference import add_counts_, histogram_

from .places import Target
from .scalars import Number, ScalarBank

_KEPT_ELEMENTS = 1 << 10  # a row of counts has twice as many words
_CHUNK = 1 << 22
_MOST_ENTRIES, _MOST_WORDS = 1 << 16, 1 << 23  # 32 MiB


class Elsewhere:
    """What was logged on other devices than the bank, of eager code.

    Beside a bank on a GPU, histograms of other GPUs and of the host are counted where they are. Beside one on the host,
    all of a device that has no bank is kept there.

    Attributes:
        is_used: Whether something was, since the window began.
        entries: What is kept of it where there is no bank, in order, until the window ends.
    """

    def __init__(self, scalars: ScalarBank, histograms: HistogramState, streams: Streams):
        self._scalars, self._histograms, self._streams = scalars, histograms, streams
        self._banks: dict[torch.device, tuple[HistogramState, torch.Tensor]] = {}
        self._used: dict[torch.device, None] = {}
        self.is_used = False
        self._stores: dict[torch.device, Store] = {}
        self.entries: deque[Entry] = deque()

    def merge(self, clock: Clock, target: Target, values: Sequence[Number], lane: int, weight: Number | None) -> None:
        """Merge scalars, and what is logged beside them: order counts."""
        slots = [int(slot) for slot in target.table.numpy()[target.at]]
        kept = [self._keep(value) for value in values]
        self._add(clock, merge_scalars, clock.rows, slots, kept, lane, 1.0 if weight is None else self._keep(weight))

    def merge_vector(
        self,
        clock: Clock,
        slots: list[int],
        values: Sequence[Any],
        is_max: bool,
        finish: Callable[..., Any],
        scale: Any,
    ) -> None:
        """Merge what ``finish`` makes of vectors and a scale, a number for each slot; what no column has is no slot."""
        kept = [self._keep(value) for value in values]
        self._add(clock, merge_vector, clock.rows, slots, kept, is_max, finish, self._keep(scale))

    def count(
        self, clock: Clock, placed: list[tuple[int, torch.Tensor]], table: torch.Tensor, binning: tuple[Any, ...]
    ) -> None:
        """Count populations, each with its place in a table of slots, by ``Binning.parameters``."""
        if self._scalars.host is None:
            for device in dict.fromkeys(values.device for _, values in placed):
                at, populations = zip(*(one for one in placed if one[1].device == device), strict=True)
                bank, now = self._bank(device, clock.step)
                bank.count_(list(populations), list(at), bank.places, now, 1, *binning)
            return
        for place, values in placed:
            slot = int(table[place])
            if slot < 0:
                continue
            if values.numel() <= _KEPT_ELEMENTS:
                self._add(clock, merge_counts, histogram_, slot, clock.step, self._keep(values), binning)
            elif can_count(values, binning[0]):
                with torch.inference_mode(False), torch.no_grad():
                    store, chunks = self._store(values.device), values.detach().reshape(-1).split(_CHUNK)
                    kept = [store.keep(count_there(chunk, store.row(slot), *binning)) for chunk in chunks]
                self._add(clock, merge_statistics, slot, clock.step, kept)
            else:  # it is large, and float32 cannot hold it
                self._histograms.count_([values.cpu()], [place], table, self._scalars.step, 1, *binning)

    def add_counts(self, clock: Clock, values: torch.Tensor, at: int, table: torch.Tensor) -> None:
        """Add counts that are counts already, see ``Buffers.add_counts``."""
        if self._scalars.host is None:
            bank, now = self._bank(values.device, clock.step)
            torch.ops.d9d_tracker.add_counts_(values, bank.counts, bank.moments, bank.places, now, at, 1)
        elif (slot := int(table[at])) >= 0:
            self._add(clock, merge_counts, add_counts_, slot, clock.step, self._keep(values), ())

    def joined(self, moments: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Arrived]:
        """Return the moments and counts of the bank's first histograms with those of here, and what is merged later."""
        arrived = self.arrived()
        for device in self._used:
            if device.type == GPU:
                self._streams.follow(device)
            bank, _ = self._banks[device]
            other, own = (_moved(part[: len(counts)], counts.device) for part in (bank.counts, bank.moments))
            last = torch.maximum(counts[:, LAST_STEP], other[:, LAST_STEP])
            smallest = torch.minimum(moments[:, Moment.MIN], own[:, Moment.MIN])
            largest = torch.maximum(moments[:, Moment.MAX], own[:, Moment.MAX])
            moments, counts = moments + own, counts + other
            counts[:, LAST_STEP], moments[:, Moment.MIN], moments[:, Moment.MAX] = last, smallest, largest
        return moments, counts, arrived

    def arrived(self) -> Arrived:
        """Return what is kept, on the host, which waits once for each device that was logged from; change nothing."""
        return Arrived(list(self.entries), {device: store.read() for device, store in self._stores.items()})

    def reset(self, rows: int | None = None) -> None:
        """Forget what was logged, in the first histograms; in all if None."""
        for device in self._used:
            self._banks[device][0].reset_(rows)
        self._used = {}
        self._forget()
        self.is_used = False

    def _forget(self) -> None:
        self.entries.clear()
        for store in self._stores.values():
            store.reset()

    def _bank(self, device: torch.device, step: int) -> tuple[HistogramState, torch.Tensor]:
        self.is_used = True
        if device.type == GPU:
            self._streams.follow(device)
        if device not in self._banks:
            with torch.inference_mode(False):
                rows = len(self._histograms.counts)
                self._banks[device] = allocate(rows, device), torch.zeros(1, dtype=torch.int64, device=device)
        self._banks[device][1].fill_(step)
        self._used[device] = None
        return self._banks[device]

    def _store(self, device: torch.device) -> Store:
        self.is_used = True
        if device not in self._stores:
            self._stores[device] = Store(device, len(self._histograms.counts))
        return self._stores[device]

    def _keep(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if value.device.type == "cpu":
            return value.detach().clone()
        with torch.inference_mode(False), torch.no_grad():
            return self._store(value.device).keep(value)

    def _add(self, clock: Clock, merge: Callable[..., None], *arguments: Any) -> None:
        """Keep what is merged later; now, if that is much: training has not stepped."""
        self.is_used = True
        self.entries.append((merge, arguments))
        if len(self.entries) > _MOST_ENTRIES or any(store.words > _MOST_WORDS for store in self._stores.values()):
            scalars, histograms = self._scalars, self._histograms
            rows = [*scalars.window.numpy()[: clock.rows], scalars.current.numpy()]
            arrived = self.arrived()
            self._forget()
            arrived.merge_into(Parts(rows, histograms.counts.numpy(), histograms.moments.numpy()))


def _moved(part: torch.Tensor, device: torch.device) -> torch.Tensor:
    part = part.pin_memory() if part.device.type == "cpu" else part
    return part.to(device, non_blocking=True)
