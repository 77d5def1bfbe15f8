"""What comes finished, for a step that may be over: it travels with the window that is open when it is logged."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from d9d_tracker.points import Points
from d9d_tracker.record import Record

from .readings import Reading


@dataclass
class Late:
    """Points of ``log_at``, hyperparameters of ``add_hparams``, and what instruments read.

    Attributes:
        records: The points, in the order in which they were logged; of one series and step, the last one counts.
        hparams: The hyperparameters, plain JSON values.
        readings: What instruments read while the window was open, which is put into it as it arrives.
    """

    records: list[Record] = field(default_factory=list)
    hparams: dict[str, Any] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.records or self.hparams)

    def add(self, records: Iterable[Record], hparams: dict[str, Any]) -> None:
        """Add what came later."""
        self.records += records
        self.hparams |= hparams

    def take_until(self, step: float) -> "Late":
        """Take out the points up to a step, and all hyperparameters."""
        taken = Late([one for one in self.records if one.step <= step], self.hparams)
        self.records, self.hparams = [one for one in self.records if one.step > step], {}
        return taken

    def points(self) -> Points:
        """Return all of it as points."""
        return Points.of([]).replaced(self.records, dict(self.hparams))
