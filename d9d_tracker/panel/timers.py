"""How long a block takes: on the host by a clock, on a GPU by events that are read when their window has arrived."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, ContextDecorator, nullcontext
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import torch

from d9d_tracker.lazy_torch import assume_constant_result
from d9d_tracker.tracing import compilations

_Item = TypeVar("_Item", covariant=True)
logger = logging.getLogger("d9d_tracker")

_said: set[str] = set()
Value = float | Callable[[], float | None]


class Meter(Protocol):
    """What instruments log by: numbers of the current step, which arrive with its window."""

    @property
    def is_gpu(self) -> bool:
        """Whether there is a device that works beside the host."""
        ...

    @property
    def run(self) -> Any:
        """The run, which says whether it ``is_open``."""
        ...

    def refuses(self, name: str) -> bool:
        """Whether nothing can be measured now, which is said once: the run is closed, or a graph is captured."""
        ...

    def record(self) -> Any:
        """Record an event on the current stream of the GPU."""
        ...

    def elapsed(self, start: Any, end: Any, last_use: tuple[Any, ...]) -> Value:
        """Return the seconds of the device between two events, to be known later."""
        ...

    def give_back(self, *events: Any) -> None:
        """Take events back that nobody will read."""
        ...

    def log(self, names: tuple[str, ...], values: tuple[Value, ...], compiling: bool = False) -> None:
        """Add a number of each series to the current step, where those of a series are summed."""
        ...


# Where host and device are: the clock's seconds; the device's event, None on a CPU; how many graphs had been compiled.
Mark = tuple[float, Any, int]


class Stopwatch:
    """Takes marks.

    Args:
        meter: Where what lies between them is logged.

    Attributes:
        seconds: The host's clock.
        logs_idle: Whether what the device waits for is summed as ``time/idle``.
    """

    def __init__(self, meter: Meter):
        self.meter = meter
        self._is_gpu = meter.is_gpu
        self.seconds: Callable[[], float] = time.perf_counter
        self.logs_idle = False

    def mark(self, name: str) -> Mark | None:
        """Mark where host and device are, without a wait; None if nothing can be measured now, which is said."""
        if (self._is_gpu or not self.meter.run.is_open) and self.meter.refuses(name):
            return None
        return self.seconds(), self.meter.record() if self._is_gpu else None, compilations()

    def end(self, names: tuple[str, ...], start: Mark | None, is_wait: bool) -> None:
        """Log what has passed since a mark that nothing else begins at."""
        if start is None or (end := self.mark(names[0])) is None:
            self.forget(start)
            return
        (began, start_event, known), (ended, end_event, now_known) = start, end
        device = host = ended - began
        if self._is_gpu:
            device = self.meter.elapsed(start_event, end_event, (start_event, end_event))
            if is_wait and self.logs_idle:
                self.meter.log((*names, "time/idle"), (device, host, device), now_known != known)
                return
        self.meter.log(names, (device, host), now_known != known)

    def forget(self, start: Mark | None) -> None:
        """Log nothing of what began at a mark."""
        if start is not None and start[1] is not None:
            self.meter.give_back(start[1])


@assume_constant_result
def say_unmeasured(where: str) -> None:
    """Say, once a process, that a block takes no time.

    Args:
        where: Why, in words.
    """
    if where not in _said:
        _said.add(where)
        logger.warning("a block %s cannot be timed, and nothing is logged of it: time the call of that code", where)


class Block(ContextDecorator):
    """A block of code that is timed, or a function whose calls are. It may be entered again within itself.

    Args:
        clock: Takes the time.
        names: The series of the device's time, and of the host's.
    """

    def __init__(self, clock: Stopwatch, names: tuple[str, str]):
        self._clock, self._names = clock, names
        self._marks: list[Mark | None] = []

    def _recreate_cm(self) -> Any:  # several threads may call the function
        return block(self._clock, self._names)

    def __enter__(self) -> None:
        self._marks.append(self._clock.mark(self._names[0]))

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        if kind is None:
            self._clock.end(self._names, self._marks.pop(), is_wait=False)
        else:
            self._clock.forget(self._marks.pop())


def block(clock: Stopwatch, names: tuple[str, str]) -> AbstractContextManager[Any]:
    """Return a block to be timed; in compiled code, where nothing can be, one that does nothing."""
    if torch.compiler.is_compiling():
        say_unmeasured("in compiled code")
        return nullcontext()
    return Block(clock, names)


class Timed(Generic[_Item]):
    """An iterable whose items are waited for by the clock.

    Args:
        clock: Takes the time.
        names: The series of the device's time, and of the host's.
        items: What is gone through: a data loader, for example.
    """

    def __init__(self, clock: Stopwatch, names: tuple[str, str], items: Iterable[_Item]):
        self._clock, self._names, self._items = clock, names, items

    def __len__(self) -> int:
        if not isinstance(self._items, Sized):
            raise TypeError(f"{type(self._items).__name__} has no len()")
        return len(self._items)

    def __iter__(self) -> Iterator[_Item]:
        items = iter(self._items)
        while True:
            start = self._clock.mark(self._names[0])
            try:
                item = next(items)
            except BaseException as error:
                self._clock.forget(start)
                if isinstance(error, StopIteration):  # there was nothing to wait for
                    return
                raise
            self._clock.end(self._names, start, is_wait=True)
            yield item

    def __getattr__(self, name: str) -> Any:
        """What the loader has: its sampler, for example."""
        if name.startswith("_"):  # not asked by a loop, but by what copies or looks at objects
            raise AttributeError(name)
        return getattr(self._items, name)
