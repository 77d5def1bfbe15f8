"""How long a block takes: on the host by a clock, on a GPU by events that are read when their window has arrived."""

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Generic, TypeVar

from torch.compiler import is_compiling

from d9d_tracker.series.registry import ContextItems
from d9d_tracker.tracing import COMPILED, compiled_graphs

from .meter import Meter, say_unmeasured

_Item = TypeVar("_Item", covariant=True)

# Where host and device are: the clock's seconds; how many graphs had been compiled; the device's event, None on a CPU.
Mark = tuple[float, int, Any]


class Stopwatch:
    """Takes marks. Few frames and few lines, as whatever a step does between its kernels.

    Args:
        meter: Where what lies between them is logged.

    Attributes:
        meter: The same.
        seconds: The host's clock.
        graphs: Tells how many graphs have been compiled.
        logs_idle: Whether what the device waits for is summed as ``time/idle``.
    """

    def __init__(self, meter: Meter):
        self.meter = meter

    def start(self, has_ranks: bool, context: Callable[[], ContextItems]) -> None:
        """Begin a new run; see ``Meter.start``."""
        self.seconds: Callable[[], float] = time.perf_counter
        self.graphs = compiled_graphs()
        self.logs_idle = False
        self.meter.start(has_ranks, context)

    def mark(self, name: str) -> Mark | None:
        """Mark where host and device are, without a wait; None if nothing can be measured now, which is said."""
        meter = self.meter
        if not meter.is_gpu:
            return self.seconds(), self.graphs(COMPILED, 0), None
        return None if meter.refuses(name) else (self.seconds(), self.graphs(COMPILED, 0), meter.record())

    def end(self, names: tuple[str, ...], start: Mark | None, is_wait: bool = False) -> None:
        """Log what has passed since a mark that nothing else begins at."""
        meter = self.meter
        if not meter.is_gpu and start is not None:
            began, graphs, _ = start
            host = self.seconds() - began
            meter.log(names, host, self.graphs(COMPILED, 0) != graphs)
            return
        if start is None or (end := self.mark(names[0])) is None:
            self.forget(start)
            return
        compiling = end[1] != start[1]
        device = meter.elapsed(start[2], end[2], (start[2], end[2]))
        meter.log((names[0], "time/idle") if is_wait and self.logs_idle else names[:1], device, compiling)
        meter.log(names[1:], end[0] - start[0], compiling)

    def forget(self, start: Mark | None) -> None:
        """Log nothing of what began at a mark."""
        if start is not None and start[2] is not None:
            self.meter.give_back(start[2])


class Block:
    """A block of code that is timed, or a function whose calls are. It may be entered again within itself.

    Args:
        clock: Takes the time.
        names: The series of the device's time, and of the host's.
    """

    __slots__ = ("_clock", "_marks", "_names")

    def __init__(self, clock: Stopwatch, names: tuple[str, str]):
        self._clock = clock
        self._names = names
        self._marks: list[Mark | None] = []

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, each call of which is a block."""

        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            with block(self._clock, self._names):  # each call its own: several threads may call
                return function(*arguments, **options)

        return timed

    def __enter__(self) -> None:
        self._marks.append(self._clock.mark(self._names[0]))

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        if kind is None:
            self._clock.end(self._names, self._marks.pop())
        else:
            self._clock.forget(self._marks.pop())


def block(clock: Stopwatch, names: tuple[str, str]) -> AbstractContextManager[Any]:
    """Return a block to be timed; in compiled code, where nothing can be, one that does nothing."""
    if is_compiling():
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
