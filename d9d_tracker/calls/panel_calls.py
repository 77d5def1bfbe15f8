"""The instrument panel of a run: what measures itself, at one call, and without a wait."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from torch.compiler import is_compiling

from d9d_tracker.bank.buffers import Buffers
from d9d_tracker.bank.host_scalars import as_number
from d9d_tracker.bank.places import Target
from d9d_tracker.bank.scalars import Number
from d9d_tracker.config import AccumulatorConfig
from d9d_tracker.errors import TrackerValueError, fail
from d9d_tracker.panel.memory import memory
from d9d_tracker.panel.meter import Gauge, Meter
from d9d_tracker.panel.rates import Rates
from d9d_tracker.panel.step import Steps
from d9d_tracker.panel.system import System
from d9d_tracker.panel.timers import Block, Stopwatch, Timed, untimed
from d9d_tracker.tracing import compiled_graphs, is_plain

from .arguments import check_names, check_number
from .calls import Calls

_Item = TypeVar("_Item")


class PanelCalls(Calls):
    """Everything that measures."""

    def __init__(self, buffers: Buffers, config: AccumulatorConfig):
        super().__init__(buffers, config)
        self._clock: Stopwatch | None = None
        self._gauges: dict[str, Gauge] = {}
        self.forget_panel()

    def time(self, name: str) -> AbstractContextManager[Any]:
        """Time a block, as in ``with run.time("forward"):``, or each call of a function that it decorates.

        On a GPU the device's time is that between two events on the stream that is current, which are read when the
        window arrives: nothing is waited for, and what the host does ahead of the device is not taken for its time.
        The block may be repeated and nested, and may span a ``set_step``: it counts for the step in which it ends.
        Left by an exception it counts for none. Compiled code and captured graphs have no time of their own: within
        them it does nothing, which is said once; a call of them is timed as any other. A coroutine function is timed
        until its end, with all that other tasks do meanwhile.

        Args:
            name: What it is called.

        Returns:
            A context manager and decorator, of all but generators. Logs ``time/<name>``, the seconds of the device, or
            of the host if the run is on a CPU, and ``time/<name>/host``, those of the host: the sum of each step.
            Blocks in which code was compiled have the context ``compiling=true``. In a job of several ranks each is
            four series, as of ``scope="spread"``.

        Raises:
            TrackerTypeError: If the name is no text.
            TrackerValueError: If the name is empty, or one of ``monitor``: step, device or idle.
        """
        gauge = self._gauges.get(name) if type(name) is str else None
        if gauge is None:
            gauge = self._gauge_of(name)
        return untimed() if is_compiling() else Block(self._clock or self.clock, gauge)

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
            TrackerValueError: If the name is empty, or one of ``monitor``: step, device or idle.
        """
        return Timed(self.clock, self._gauge_of(name), items)

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
            TrackerValueError: If it is called in compiled code, or while a CUDA graph is captured, or one of these
                series was logged otherwise before.
        """
        self._refuse_inside_graphs("monitor")
        if self._is_silent("monitor"):
            return
        steps, meter, system = self._step_times(), self.clock.meter, self._system or System(self.buffers.device)
        # What contradicts another series is refused here, and not by a ``set_step``.
        for gauge in steps.gauges:
            meter.slots(gauge)
        for name in (*memory(self.buffers.device), *system.names):
            meter.slots(meter.gauge(name), reduce="last")
        steps.logs = steps.is_first = self.clock.logs_idle = True
        self._system = system

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
        buffers = self.buffers
        if is_compiling() or buffers.is_gpu:
            self._refuse_inside_graphs("rate")
        if not (self.is_open and is_plain()) and (self._is_silent(name) or self._is_repeated(name)):
            return
        if self._steps is None:
            self._step_times()
        key = (name, self._contexts.get(), flops, peak)
        slot = self._rates.slots.get(key) if type(name) is str else None
        if slot is None:
            check_names([name])
            slot = self._rates.claim(*key)
        known = n if type(n) is int and 0 <= n < 2**53 else as_number(n)
        if known is not None:
            buffers.readings.append((buffers.now[0], slot, known))
            return
        number = check_number(name, (), n, buffers.device)
        if slot:
            buffers.change(buffers.merge, Target([slot - 1], buffers.scalars.places), [number], "sum", None)

    def _step_times(self) -> Steps:
        if self._steps is None:
            self._rates = Rates(self.clock.meter, self._ranks)
            self._steps = Steps(self.clock, self._rates, self._look_around)
        return self._steps

    def _look_around(self) -> None:
        self.clock.graphs = compiled_graphs()  # Dynamo may have come, or its counters been cleared
        if self._system is not None:
            meter = self.clock.meter
            for name, value in (memory(self.buffers.device) | self._system.readings()).items():
                meter.log(meter.gauge(name), value, reduce="last")

    def _gauge_of(self, name: str) -> Gauge:
        check_names([name])
        if name in ("step", "device", "idle"):
            fail(TrackerValueError, f"'time/{name}' is what run.monitor() logs: give what you time another name")
        gauge = self._gauges[name] = self.clock.meter.gauge(f"time/{name}", f"time/{name}/host")
        return gauge

    def forget_panel(self, ranks: int = 1) -> None:
        """Have no instruments, for a new run that so many processes share."""
        self._ranks = ranks
        self._steps: Steps | None = None
        self._system: System | None = None
        if self._clock is not None:
            self._clock.start(ranks > 1, self._contexts)

    @property
    def clock(self) -> Stopwatch:
        """What takes the time; ``clock.seconds`` may be replaced by another clock, for this run."""
        if self._clock is None:
            self._clock = Stopwatch(Meter(self, self._is_silent))
            self._clock.start(self._ranks > 1, self._contexts)
        return self._clock
