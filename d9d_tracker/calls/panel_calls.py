"""The instrument panel of a run: what measures itself, at one call, and without a wait."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch

from d9d_tracker.bank.buffers import Buffers
from d9d_tracker.bank.host_scalars import as_number
from d9d_tracker.bank.scalars import Number
from d9d_tracker.bank.target import Target
from d9d_tracker.config import AccumulatorConfig
from d9d_tracker.panel.memory import memory
from d9d_tracker.panel.meter import Meter
from d9d_tracker.panel.rates import Rates
from d9d_tracker.panel.step import Steps
from d9d_tracker.panel.system import Sample, System
from d9d_tracker.panel.timers import Stopwatch, Timed, block
from d9d_tracker.tracing import compiled_graphs

from .arguments import check_names, check_number
from .calls import Calls

_Item = TypeVar("_Item")


class PanelCalls(Calls):
    """Everything that measures."""

    def __init__(self, buffers: Buffers, config: AccumulatorConfig):
        super().__init__(buffers, config)
        self._clock: Stopwatch | None = None
        self._names: dict[str, tuple[str, str]] = {}
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
        names = self._names.get(name) if type(name) is str else None
        return block(self._clock or self.clock, names or self._names_of(name))

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
        return Timed(self.clock, self._names_of(name), items)

    def monitor(self) -> None:
        """Log, from now on, how long steps take, and at the end of each window what memory and machine are like.

        Nothing is waited for. In a job of several ranks each is four series, as of ``scope="spread"``.

        - ``time/step``: seconds of the host between two calls of ``set_step``; ``time/device``: of the GPU, between
          events at the same places; ``time/idle``: what the GPU waited for data, in the loops of ``run.timed``. Steps
          in which code was compiled have the context ``compiling=true``.
        - ``memory/allocated``, ``memory/reserved``: bytes of the GPU's caching allocator; ``memory/allocated/peak``,
          ``memory/reserved/peak``: the most since the window before. For that the allocator's peaks are reset at each
          window: ``torch.cuda.max_memory_allocated()`` tells of the window then. ``memory/retries``: how often the
          allocator has freed its cache because the GPU was full. ``memory/host``: bytes of the process.
        - With the extra ``system``, asked for by the collector's thread, every two seconds at most:
          ``system/gpu/utilization`` (percent of the time in which a kernel ran), ``system/gpu/power`` (watts),
          ``system/gpu/temperature`` (degrees Celsius), ``system/gpu/clock`` (MHz), ``system/cpu`` (percent of all
          cores), ``system/ram`` (bytes in use), and bytes a second: ``system/disk/read``, ``system/disk/written``,
          ``system/network/received``, ``system/network/sent``.

        Raises:
            TrackerValueError: If it is called in compiled code, or while a CUDA graph is captured.
        """
        self._refuse_inside_graphs("monitor")
        if self._is_silent("monitor"):
            return
        self._step_times().logs = self.clock.logs_idle = True
        self._system, self._is_first = self._system or System(self.buffers.device), True

    def rate(self, name: str, n: Number, *, flops: float | None = None, peak: float | None = None) -> None:
        """Count units of work, tokens for example, whose number a second is logged.

        Args:
            name: What they are called.
            n: How many this rank has worked on, a number or a tensor of one element, which is not waited for. Those of
                a step and of all ranks are summed.
            flops: Floating point operations of a unit, forward and backward. Needs ``peak``.
            peak: Those that the device of a rank can do a second.

        Logs ``<name>``, the running total, which a resumed run goes on with; ``<name>/s``, the units of a step by the
        seconds that it took the slowest rank, from one ``set_step`` to the next; and with ``flops`` the fraction of
        the peak that was reached, ``mfu``. A step in which code was compiled, or that is not whole, has the total only.

        Raises:
            TrackerTypeError: If ``n`` is no number.
            TrackerValueError: If it is called in compiled code or while a CUDA graph is captured, ``n`` has not one
                element, the name is that of another series, one of ``flops`` and ``peak`` is missing or not above 0, or
                another rate has given ``flops``.
        """
        if torch.compiler.is_compiling() or self.buffers.is_gpu:
            self._refuse_inside_graphs("rate")
        if not self.is_open:
            self._is_silent(name)
            return
        if self._steps is None:
            self._step_times()
        key = (name, self._contexts.get(), flops, peak)
        slot = self._rates.slots.get(key)
        if slot is None:
            check_names([name])
            slot = self._rates.claim(*key)
        buffers = self.buffers
        known = float(n) if type(n) is int and 0 <= n < 2**53 else as_number(n)
        if known is not None:
            buffers.readings.append((buffers.now[0], slot, known))
            return
        number = check_number(name, (), n, buffers.device)
        if slot[0] >= 0:
            buffers.change(buffers.merge, Target([*slot], buffers.scalars.places), [number], "sum", None)

    def _step_times(self) -> Steps:
        if self._steps is None:
            self._steps = Steps(self.clock, self._end_step)
            self._rates = Rates(self.clock.meter.part, self._ranks)
        return self._steps

    def _end_step(self, seconds: float, compiling: bool) -> None:
        buffers = self.buffers
        if not compiling:
            for slot, factor in self._rates.of_time:
                buffers.readings.append((buffers.now[0], slot, seconds * factor))
        if not (self._is_first or buffers.is_last_step):
            return
        self._is_first = False
        self.clock.graphs = compiled_graphs()  # Dynamo may have come, or its counters been cleared
        if self._system is not None:
            sample = Sample(self._system)
            found = memory(buffers.device) | {name: sample.value(name) for name in self._system.names}
            for name, value in found.items():
                self.clock.meter.log((name,), value, reduce="last")

    def _names_of(self, name: str) -> tuple[str, str]:
        check_names([name])
        names = self._names[name] = (f"time/{name}", f"time/{name}/host")
        return names

    def forget_panel(self, ranks: int = 1) -> None:
        """Have no instruments, for a new run.

        Args:
            ranks: How many processes share it.
        """
        self._ranks = ranks
        self._steps: Steps | None = None
        self._system: System | None = None
        self._is_first = True
        if self._clock is not None:
            self._clock.start(ranks > 1, self._contexts.get)

    @property
    def clock(self) -> Stopwatch:
        """What takes the time; ``clock.seconds`` may be replaced by another clock, for this run."""
        if self._clock is None:
            self._clock = Stopwatch(Meter(self, self._is_silent))
            self._clock.start(self._ranks > 1, self._contexts.get)
        return self._clock
