"""Where values go that are on other devices than the bank: counted or kept there, and merged when the window ends."""

from collections.abc import Sequence
from typing import Any

import torch

from d9d_tracker.devices.plain import Parts, PlainBank
from d9d_tracker.devices.sides import Sides, Streams
from d9d_tracker.windows.clock import Clock
from d9d_tracker_kernels import HistogramState

from .scalars import Number, ScalarBank
from .target import Target


class Elsewhere:
    """What was logged on other devices than the bank, of eager code.

    Attributes:
        plain: What is kept of it where there is no bank, until the window ends; then the bank is on the host.
    """

    def __init__(self, scalars: ScalarBank, histograms: HistogramState, streams: Streams):
        self._scalars, self._histograms = scalars, histograms
        self._sides = Sides(len(histograms.counts), streams)
        self.plain = PlainBank(len(histograms.counts))

    def merge(self, clock: Clock, target: Target, values: Sequence[Number], lane: int, weight: Number | None) -> None:
        """Merge scalars, and what is logged beside them: order counts."""
        slots = [int(slot) for slot in target.table.numpy()[target.at]]
        self.plain.merge(clock.rows, slots, values, lane, 1.0 if weight is None else weight)
        self._make_room(clock)

    def count(
        self, clock: Clock, placed: list[tuple[int, torch.Tensor]], table: torch.Tensor, binning: tuple[Any, ...]
    ) -> None:
        """Count populations, each with its place in a table of slots, by ``Binning.parameters``."""
        if self._scalars.host is None:
            for device in dict.fromkeys(values.device for _, values in placed):
                at, populations = zip(*(one for one in placed if one[1].device == device), strict=True)
                self._sides.count(clock.step, list(at), list(populations), binning)
            return
        for place, values in placed:
            slot = int(table[place])
            if slot >= 0 and not self.plain.count(values, slot, clock.step, binning):
                self._histograms.count_([values.cpu()], [place], table, self._scalars.step, 1, *binning)
        self._make_room(clock)

    def add_counts(self, clock: Clock, values: torch.Tensor, at: int, table: torch.Tensor) -> None:
        """Add counts that are counts already, see ``Buffers.add_counts``."""
        if self._scalars.host is None:
            self._sides.add_counts(clock.step, at, values)
        elif (slot := int(table[at])) >= 0:
            self.plain.add_counts(values, slot, clock.step)

    def joined(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the moments and counts of the first histograms, those of the bank among them, without a wait."""
        return self._sides.joined(self._histograms.moments[:rows], self._histograms.counts[:rows])

    def reset(self, rows: int | None = None) -> None:
        """Forget what was logged, in the first histograms; in all if None."""
        self._sides.reset(rows)
        self.plain.reset()

    def _make_room(self, clock: Clock) -> None:
        """Merge what was kept if that is much: training has not stepped."""
        if self.plain.is_full:
            scalars, histograms = self._scalars, self._histograms
            rows = [*scalars.window.numpy()[: clock.rows], scalars.current.numpy()]
            arrived = self.plain.copy_to_host()
            self.plain.reset()
            arrived.merge_into(Parts(rows, histograms.counts.numpy(), histograms.moments.numpy()))
