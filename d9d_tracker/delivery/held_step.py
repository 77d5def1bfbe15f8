"""The step that has not ended, for backends that take a step once: held back until it is whole."""

from collections.abc import Iterable
from dataclasses import replace
from operator import attrgetter

from d9d_tracker.points import Points
from d9d_tracker.record import Record


class HeldStep:
    """The points of the unfinished ``step``, the newest of each series; None if none is held back."""

    def __init__(self):
        self.step: int | None = None
        self._held: dict[tuple[str, frozenset[tuple[str, str]]], Record] = {}

    def __len__(self) -> int:
        return len(self._held)

    def pass_on(self, points: Points, first: int, unfinished: int | None) -> tuple[Points, int]:
        """Return a window without the step that is unfinished, with what was held back of ended ones, and its first."""
        if self.step is None and unfinished is None:
            return points, first
        passed = [record for record in points if record.step not in (self.step, unfinished)]
        if self.step is not None:
            self._hold(record for record in points if record.step == self.step)
            if self.step != unfinished:
                passed = sorted([*passed, *self._held.values()], key=attrgetter("step"))
                first, self.step, self._held = min(first, self.step), None, {}
        if self.step is None and unfinished is not None:
            self._hold(record for record in points if record.step == unfinished)
            self.step = unfinished if self._held else None
        return replace(Points.of(passed), hparams=points.hparams), first

    def _hold(self, records: Iterable[Record]) -> None:
        for record in records:
            self._held[record.name, frozenset(record.context.items())] = record
