"""The step that has not ended, for backends that take a step once: held back until it is whole."""

from collections.abc import Sequence

from d9d_tracker.record import Record


class HeldStep:
    """The points of the unfinished step, the newest of each series."""

    def __init__(self):
        self._held: dict[tuple[int, str, str], Record] = {}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def step(self) -> int | None:
        """Which step is held back; None if none is."""
        return next(iter(self._held.values())).step if self._held else None

    def pass_on(self, records: Sequence[Record], unfinished: int | None) -> list[Record]:
        """Return the points of steps that have ended, those held back before included.

        Args:
            records: The points of a window.
            unfinished: The step that has not ended, if any.
        """
        ended = [record for record in records if record.step != unfinished]
        open_steps = {unfinished, *(record.step for record in self._held.values())}
        for record in records:
            if record.step in open_steps:
                self._held[record.step, record.name, repr(sorted(record.context.items()))] = record
        held_step = self.step
        if held_step is None or held_step == unfinished:
            return ended
        released = [*self._held.values(), *(record for record in ended if record.step != held_step)]
        self._held = {key: record for key, record in self._held.items() if record.step == unfinished}
        return sorted((record for record in released if record.step != unfinished), key=lambda record: record.step)
