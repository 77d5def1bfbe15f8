"""What gets done a second: units of a step, those of all ranks, by the time of the slowest."""

from d9d_tracker.context import ContextItems
from d9d_tracker.errors import TrackerValueError
from d9d_tracker.windows.readings import packed

from .meter import Meter

_MFU = "mfu"


class Rates:
    """The rates of a run.

    Args:
        meter: Gives series their slots.
        ranks: How many ranks share the run.

    Attributes:
        slots: Those that units are summed in (see ``packed``), by what ``claim`` was called with.
        of_time: Where the time of a step goes, each such a slot, and what the seconds are multiplied by there.
    """

    def __init__(self, meter: Meter, ranks: int):
        self._meter, self._ranks = meter, ranks
        self.slots: dict[tuple[str, ContextItems, float | None, float | None], int] = {}
        self._seconds: dict[tuple[str, ContextItems], tuple[int, float]] = {}  # of each ratio
        self.of_time: tuple[tuple[int, float], ...] = ()
        self._mfu_of: str | None = None

    def claim(self, name: str, context: ContextItems, flops: float | None, peak: float | None) -> int:
        """Give units a slot to be summed in, and return it, packed: 0 if none is left; see ``PanelCalls.rate``."""
        if (flops is None) != (peak is None) or not all(one is None or one > 0 for one in (flops, peak)):
            raise TrackerValueError(
                f"rate({name!r}): flops={flops!r} and peak={peak!r} go together and are above 0: operations of a "
                "unit, and those that one device can do a second"
            )
        mfu_of = self._mfu_of if flops is None else name
        if self._mfu_of not in (None, mfu_of):
            raise TrackerValueError(f"rate({name!r}): mfu is that of {self._mfu_of!r}; give flops to one rate")
        ratios = (f"{name}/s", _MFU) if name == mfu_of else (f"{name}/s",)
        slot = packed(self._meter.part(name, context, "sum", tuple((ratio, 1) for ratio in ratios)))
        self._mfu_of = mfu_of
        factors = {f"{name}/s": 1.0}
        if flops is not None and peak is not None:
            factors[_MFU] = peak * self._ranks / flops
        for ratio, factor in factors.items():
            seconds = self._meter.part(f"{ratio}/time", context, "max", ((ratio, -1),))
            self._seconds[ratio, context] = packed(seconds), factor
        self.of_time = tuple(self._seconds.values())
        if slot:  # else each value is counted as it is dropped
            self.slots[name, context, flops, peak] = slot
        return slot
