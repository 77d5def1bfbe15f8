"""Where values go that are on other devices than the bank: counted or kept there, and merged when the window ends."""

from collections.abc import Sequence
from typing import Any

import torch

from d9d_tracker.devices.arrived import Arrived, Parts
from d9d_tracker.devices.plain import PlainBank
from d9d_tracker.devices.streams import Streams
from d9d_tracker.windows.clock import Clock
from d9d_tracker_kernels.bank import HistogramState, allocate
from d9d_tracker_kernels.binning import LAST_STEP, Moment
from d9d_tracker_kernels.device import GPU

from .places import Target
from .scalars import Number, ScalarBank


class Elsewhere:
    """What was logged on other devices than the bank, of eager code.

    Beside a bank on a GPU, histograms of other GPUs and of the host are counted where they are. Beside one on the host,
    all of a device that has no bank is kept there.

    Attributes:
        is_used: Whether something was, since the window began.
        plain: What is kept of it where there is no bank, until the window ends.
    """

    def __init__(self, scalars: ScalarBank, histograms: HistogramState, streams: Streams):
        self._scalars, self._histograms, self._streams = scalars, histograms, streams
        self._banks: dict[torch.device, tuple[HistogramState, torch.Tensor]] = {}
        self._used: dict[torch.device, None] = {}
        self.is_used = False
        self.plain = PlainBank(len(histograms.counts))

    def merge(self, clock: Clock, target: Target, values: Sequence[Number], lane: int, weight: Number | None) -> None:
        """Merge scalars, and what is logged beside them: order counts."""
        self.is_used = True
        slots = [int(slot) for slot in target.table.numpy()[target.at]]
        self.plain.merge(clock.rows, slots, values, lane, 1.0 if weight is None else weight)
        self._make_room(clock)

    def merge_vector(self, clock: Clock, slots: list[int], *made: Any) -> None:
        """Merge vectors; see ``PlainBank.merge_vector``."""
        self.is_used = True
        self.plain.merge_vector(clock.rows, slots, *made)
        self._make_room(clock)

    def count(
        self, clock: Clock, placed: list[tuple[int, torch.Tensor]], table: torch.Tensor, binning: tuple[Any, ...]
    ) -> None:
        """Count populations, each with its place in a table of slots, by ``Binning.parameters``."""
        self.is_used = True
        if self._scalars.host is None:
            for device in dict.fromkeys(values.device for _, values in placed):
                at, populations = zip(*(one for one in placed if one[1].device == device), strict=True)
                bank, now = self._bank(device, clock.step)
                bank.count_(list(populations), list(at), bank.places, now, 1, *binning)
            return
        for place, values in placed:
            slot = int(table[place])
            if slot >= 0 and not self.plain.count(values, slot, clock.step, binning):
                self._histograms.count_([values.cpu()], [place], table, self._scalars.step, 1, *binning)
        self._make_room(clock)

    def add_counts(self, clock: Clock, values: torch.Tensor, at: int, table: torch.Tensor) -> None:
        """Add counts that are counts already, see ``Buffers.add_counts``."""
        self.is_used = True
        if self._scalars.host is None:
            bank, now = self._bank(values.device, clock.step)
            torch.ops.d9d_tracker.add_counts_(values, bank.counts, bank.moments, bank.places, now, at, 1)
        elif (slot := int(table[at])) >= 0:
            self.plain.add_counts(values, slot, clock.step)
            self._make_room(clock)

    def joined(self, moments: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Arrived]:
        """Return the moments and counts of the bank's first histograms with those of here, and what is merged later."""
        arrived = self.plain.copy_to_host()
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

    def reset(self, rows: int | None = None) -> None:
        """Forget what was logged, in the first histograms; in all if None."""
        for device in self._used:
            self._banks[device][0].reset_(rows)
        self._used = {}
        self.plain.reset()
        self.is_used = False

    def _bank(self, device: torch.device, step: int) -> tuple[HistogramState, torch.Tensor]:
        if device.type == GPU:
            self._streams.follow(device)
        if device not in self._banks:
            with torch.inference_mode(False):
                rows = len(self._histograms.counts)
                self._banks[device] = allocate(rows, device), torch.zeros(1, dtype=torch.int64, device=device)
        self._banks[device][1].fill_(step)
        self._used[device] = None
        return self._banks[device]

    def _make_room(self, clock: Clock) -> None:
        """Merge what was kept if that is much: training has not stepped."""
        if self.plain.is_full:
            scalars, histograms = self._scalars, self._histograms
            rows = [*scalars.window.numpy()[: clock.rows], scalars.current.numpy()]
            arrived = self.plain.copy_to_host()
            self.plain.reset()
            arrived.merge_into(Parts(rows, histograms.counts.numpy(), histograms.moments.numpy()))


def _moved(part: torch.Tensor, device: torch.device) -> torch.Tensor:
    part = part.pin_memory() if part.device.type == "cpu" else part
    return part.to(device, non_blocking=True)
