"""What gets done a second: units of a step, those of all ranks, by the time of the slowest."""

from collections.abc import Callable
from typing import Literal

from d9d_tracker.errors import TrackerValueError
from d9d_tracker.windows.readings import packed

Items = tuple[tuple[str, str], ...]
# Returns the slot of a series that goes into ratios: name, context, reduction, and each ratio with 1, or with -1 where
# it is what is divided by.
Part = Callable[[str, Items, Literal["sum", "max"], tuple[tuple[str, int], ...]], int]
_MFU = "mfu"


class Rates:
    """The rates of a run.

    Args:
        part: Gives series their slots.
        ranks: How many ranks share the run.

    Attributes:
        slots: Those that units are summed in (see ``packed``), by what ``claim`` was called with.
        of_time: Where the time of a step goes, each such a slot, and what the seconds are multiplied by there.
    """

    def __init__(self, part: Part, ranks: int):
        self._part, self._ranks = part, ranks
        self.slots: dict[tuple[str, Items, float | None, float | None], int] = {}
        self._seconds: dict[tuple[str, Items], tuple[int, float]] = {}  # by ratio: the slot of the time, and its factor
        self.of_time: tuple[tuple[int, float], ...] = ()
        self._mfu_of: str | None = None

    def claim(self, name: str, context: Items, flops: float | None, peak: float | None) -> int:
        """Give units a slot to be summed in, and return it, packed: 0 if none is left.

        Args:
            name: What the units are called.
            context: Tags.
            flops: Floating point operations of a unit, if ``mfu`` is wanted.
            peak: Those that a rank's device can do a second.
        """
        if (flops is None) != (peak is None) or not all(one is None or one > 0 for one in (flops, peak)):
            raise TrackerValueError(
                f"rate({name!r}): flops={flops!r} and peak={peak!r} go together and are above 0: operations of a "
                "unit, and those that one device can do a second"
            )
        mfu_of = self._mfu_of if flops is None else name
        if self._mfu_of not in (None, mfu_of):
            raise TrackerValueError(f"rate({name!r}): mfu is that of {self._mfu_of!r}; give flops to one rate")
        ratios = (f"{name}/s", _MFU) if name == mfu_of else (f"{name}/s",)
        slot = packed(self._part(name, context, "sum", tuple((ratio, 1) for ratio in ratios)))
        self._mfu_of = mfu_of
        factors = {f"{name}/s": 1.0}
        if flops is not None and peak is not None:
            factors[_MFU] = peak * self._ranks / flops
        for ratio, factor in factors.items():
            self._seconds[ratio, context] = packed(self._part(f"{ratio}/time", context, "max", ((ratio, -1),))), factor
        self.of_time = tuple(self._seconds.values())
        if slot:  # else each value is counted as it is dropped
            self.slots[name, context, flops, peak] = slot
        return slot
