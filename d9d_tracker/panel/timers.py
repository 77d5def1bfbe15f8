"""How long a block takes: on the host by a clock, on a GPU by events that are read when their window has arrived."""

import functools
import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Generic, TypeVar

from torch.compiler import is_compiling

from d9d_tracker.context import Contexts
from d9d_tracker.devices.event_ring import Elapsed, EventRing
from d9d_tracker.errors import TrackerTypeError
from d9d_tracker.tracing import COMPILED, compiled_graphs
from d9d_tracker_kernels.device import gpu

from .meter import Gauge, Meter, say_unmeasured

_Item = TypeVar("_Item", covariant=True)
_WINDOWS = 3  # one is open, one on its way, one being read
_BLOCKS = 4  # that a step times, if it is not known better

# Where host and device are: the clock's seconds; how many graphs had been compiled; the device's event, None on a CPU.
Mark = tuple[float, int, Any]


class Stopwatch:
    """Takes marks. On a CPU, whoever times takes them by itself: few frames between the kernels of a step.

    Args:
        meter: Where what lies between them is logged.

    Attributes:
        meter: The same.
        is_gpu: Whether a mark has an event.
        ring: Where the events are from.
        seconds: The host's clock.
        graphs: Tells how many graphs have been compiled.
        logs_idle: Whether what the device waits for is summed as ``time/idle``.
    """

    def __init__(self, meter: Meter):
        self.meter, buffers = meter, meter.run.buffers
        self.is_gpu = buffers.is_gpu
        self.ring = EventRing(buffers.device, _WINDOWS * _BLOCKS * buffers.sync_every) if buffers.is_gpu else None

    def start(self, has_ranks: bool, contexts: Contexts) -> None:
        """Begin a new run; see ``Meter.start``."""
        self.seconds: Callable[[], float] = time.perf_counter
        self.graphs = compiled_graphs()
        self.logs_idle = False
        self.meter.start(has_ranks, contexts)

    def mark(self, name: str) -> Mark | None:
        """Mark where host and device are, without a wait; None if nothing can be measured now, which is said."""
        if self.ring is None:
            return self.seconds(), self.graphs(COMPILED, 0), None
        if self.meter.is_closed(name):
            return None
        if gpu.is_current_stream_capturing():
            say_unmeasured("in a CUDA graph that is captured")
            return None
        return self.seconds(), self.graphs(COMPILED, 0), self.ring.record()

    def end(self, gauge: Gauge, start: Mark | None, is_wait: bool = False) -> None:
        """Log what has passed on a GPU since a mark that nothing else begins at."""
        meter, (device, host) = self.meter, gauge.names
        if self.ring is None or start is None or (end := self.mark(device)) is None:
            self.forget(start)
            return
        compiling = end[1] != start[1]
        names = (device, "time/idle") if is_wait and self.logs_idle else (device,)
        meter.log(meter.gauge(*names), Elapsed(self.ring, start[2], end[2], (start[2], end[2])), compiling)
        meter.log(meter.gauge(host), end[0] - start[0], compiling)

    def forget(self, start: Mark | None) -> None:
        """Log nothing of what began at a mark."""
        if start is not None and self.ring is not None:
            self.ring.give_back(start[2])


class Block:
    """A block of code that is timed, or a function whose calls are. It may be entered again within itself.

    Args:
        clock: Takes the time.
        gauge: Of the device's time, and of the host's.
    """

    __slots__ = ("_clock", "_gauge", "_marks")

    def __init__(self, clock: Stopwatch, gauge: Gauge):
        self._clock = clock
        self._gauge = gauge
        self._marks: list[Mark | None] = []

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, each call of which is a block; of a coroutine, from its begin to its end."""
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TrackerTypeError(
                f"{self._gauge.names[0]!r}: {function.__qualname__} is a generator, whose call does nothing yet; time "
                "what a loop waits for with run.timed(...)"
            )

        def block() -> AbstractContextManager[Any]:  # each call its own: several threads may call
            return untimed() if is_compiling() else Block(self._clock, self._gauge)

        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            with block():
                return function(*arguments, **options)

        @functools.wraps(function)
        async def awaited(*arguments: Any, **options: Any) -> Any:
            with block():
                return await function(*arguments, **options)

        return awaited if inspect.iscoroutinefunction(function) else timed

    def __enter__(self) -> None:
        clock = self._clock
        if clock.is_gpu:
            self._marks.append(clock.mark(self._gauge.names[0]))
        else:
            self._marks.append((clock.seconds(), clock.graphs(COMPILED, 0), None))

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        clock, start = self._clock, self._marks.pop()
        if kind is not None:
            clock.forget(start)
        elif start is None or clock.is_gpu:
            clock.end(self._gauge, start)
        else:
            clock.meter.log(self._gauge, clock.seconds() - start[0], clock.graphs(COMPILED, 0) != start[1])


def untimed() -> AbstractContextManager[Any]:
    """Return a block of compiled code, where nothing can be timed."""
    say_unmeasured("in compiled code")
    return nullcontext()


class Timed(Generic[_Item]):
    """An iterable whose items are waited for by the clock.

    Args:
        clock: Takes the time.
        gauge: Of the device's time, and of the host's.
        items: What is gone through: a data loader, for example.
    """

    def __init__(self, clock: Stopwatch, gauge: Gauge, items: Iterable[_Item]):
        self._clock, self._gauge, self._items = clock, gauge, items

    def __len__(self) -> int:
        if not isinstance(self._items, Sized):
            raise TypeError(f"{type(self._items).__name__} has no len()")
        return len(self._items)

    def __iter__(self) -> Iterator[_Item]:
        items, clock, gauge = iter(self._items), self._clock, self._gauge
        while True:
            start = clock.mark(gauge.names[0])
            try:
                item = next(items)
            except BaseException as error:
                clock.forget(start)
                if isinstance(error, StopIteration):  # there was nothing to wait for
                    return
                raise
            if start is None or clock.is_gpu:
                clock.end(gauge, start, is_wait=True)
            else:
                clock.meter.log(gauge, clock.seconds() - start[0], clock.graphs(COMPILED, 0) != start[1])
            yield item

    def __getattr__(self, name: str) -> Any:
        """What the loader has: its sampler, for example."""
        if name.startswith("_"):  # not asked by a loop, but by what copies or looks at objects
            raise AttributeError(name)
        return getattr(self._items, name)
