"""Where a run stands: its step, and the rows of the window that is open."""

import functools
from collections.abc import MutableSequence
from typing import NamedTuple


class Clock(NamedTuple):
    """Where a run stands. Replaced as a whole, so that it is never seen half changed.

    The lists may be longer than ``rows``, by what the next clock will hold: to copy them at every step would make a
    step dearer the longer the window is.

    Attributes:
        step: The current step.
        began: When it began on the host, in seconds since the epoch.
        first: The step that the window began with.
        filed: The step of each row.
        times: When each of these began.
        rows: How many rows the window holds.
        passed: How many steps of the window have ended.
        windows: Index of the next window.
        copies: How many copies to the host this run took.
    """

    step: int
    began: float
    first: int
    filed: MutableSequence[int]
    times: MutableSequence[float]
    rows: int = 0
    passed: int = 0
    windows: int = 0
    copies: int = 0


# The same as a plain tuple, which is made at every step: a named one would take five times as long.
Now = tuple[int, float, int, MutableSequence[int], MutableSequence[float], int, int, int, int]
make_clock = functools.partial(tuple.__new__, Clock)
