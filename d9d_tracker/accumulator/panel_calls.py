"""The instrument panel of a run: what measures itself, at one call, and without a wait."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from d9d_tracker.config import AccumulatorConfig
from d9d_tracker.panel.timers import Clock, Timed, block

from .arguments import check_names
from .buffers import Buffers
from .calls import Calls
from .meter import Meter
from .registry import ContextItems

_Item = TypeVar("_Item")


class PanelCalls(Calls):
    """Everything that measures."""

    def __init__(self, buffers: Buffers, config: AccumulatorConfig):
        super().__init__(buffers, config)
        self._has_ranks = False
        self.forget_panel()

    def time(self, name: str) -> AbstractContextManager[Any]:
        """Time a block, as in ``with run.time("forward"):``, or each call of a function that it decorates.

        On a GPU the device's time is that between two events on the stream that is current, which are read when the
        window arrives: nothing is waited for, and what the host does ahead of the device is not taken for its time.
        The block may be repeated and nested, and may span a ``set_step``: it counts for the step in which it ends.
        Left by an exception it counts for none. Compiled code and captured graphs have no time of their own: within
        them it does nothing, which is said once; a call of them is timed as any other.

        Args:
            name: What it is called.

        Returns:
            A context manager and decorator. Logs ``time/<name>``, the seconds of the device, or of the host if the run
            is on a CPU, and ``time/<name>/host``, those of the host: the sum of each step. Blocks in which code was
            compiled have the context ``compiling=true``. In a job of several ranks each is four series, as of
            ``scope="spread"``.

        Raises:
            TrackerTypeError: If the name is no text.
            TrackerValueError: If the name is empty.
        """
        check_names([name])
        return block(self.clock, f"time/{name}")

    def timed(self, items: Iterable[_Item], name: str = "data") -> Timed[_Item]:
        """Time what a loop waits for, as in ``for batch in run.timed(loader):``.

        Args:
            items: What to go through, as often as you like: a data loader, for example.
            name: What the wait is called.

        Returns:
            An iterable of the same items. Each wait is a block of ``run.time(name)``, see there. On a GPU ``time/data``
            is therefore what the device waited, and ``time/data/host`` what the host did.

        Raises:
            TrackerTypeError: If the name is no text.
            TrackerValueError: If the name is empty.
        """
        check_names([name])
        return Timed(self.clock, f"time/{name}", items)

    def _context_of_a_block(self) -> ContextItems:
        return self._items("time", None, "global")

    def forget_panel(self) -> None:
        """Have no instruments, for a new run."""
        self._clock: Clock | None = None

    @property
    def clock(self) -> Clock:
        """What takes the time; ``clock.seconds`` may be replaced by another clock."""
        if self._clock is None:
            self._clock = Clock(Meter(self.buffers, self._has_ranks, self._context_of_a_block, self._is_silent))
        return self._clock
