"""Streams, events and CUDA graphs of two GPUs that are not there.

Work is queued on streams and done later, in an order that a seed chooses among all that streams and events allow: some
streams are starved. What a real capture refuses is refused here, and invalidates the capture: waits of the host, loads
of kernels, and what another thread asks of events, unless the thread is relaxed.

Time passes on a stream by ``torch.cuda._sleep`` alone, a cycle a second, and by waits: work begins no earlier than it
was issued, by the machine's clock. So what events measure is the same in every order that is possible.
"""

import contextlib
import itertools
import random
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

POOL = 32
_CAPTURING = "operation not permitted when stream is capturing"
_IDLE_SECONDS = 0.01
Work = Callable[[], object]


class HiddenWaitError(RuntimeError):
    """The host waited for the device where it must not."""


class Stream:
    """A stream of a device; number 0 is the default one, the others come from a pool of 32, in turn."""

    def __init__(self, device: Any = None, number: int | None = None, **_: Any):
        self.index = machine().index_of(device)
        self.device = torch.device("cuda", self.index)
        self.number = 1 + next(machine().dealt[self.index]) % POOL if number is None else number
        self.cuda_stream = self.index << 8 | self.number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.cuda_stream == other.cuda_stream

    def __hash__(self) -> int:
        return hash(self.cuda_stream)

    def wait_event(self, event: "Event") -> None:
        machine().wait(self, event)

    def wait_stream(self, other: "Stream") -> None:
        event = Event()
        event.record(other)
        self.wait_event(event)

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = Event() if event is None else event
        event.record(self)
        return event

    def query(self) -> bool:
        machine().refuse_in_captures("a question to a stream")
        return not machine().queues.get(self)

    def synchronize(self) -> None:
        machine().refuse_in_captures("a wait for a stream")
        machine().run_until(lambda: not machine().queues.get(self))


class Event:
    """An event. Recording it again moves it; who waits for it waits for the record before the wait."""

    timers = 0  # how many were made that tell the time

    def __init__(self, enable_timing: bool = False, **_: Any):
        Event.timers += enable_timing
        self.recorded = self.done = 0
        self.seconds: dict[int, float] = {}  # by the number of the record
        self.enable_timing = enable_timing
        self.capture: Graph | None = None  # which recorded it last
        self.device = torch.device("cuda", machine().device)

    def record(self, stream: Stream | None = None) -> None:
        machine().record(self, machine().current() if stream is None else stream)

    def wait(self, stream: Stream | None = None) -> None:
        (machine().current() if stream is None else stream).wait_event(self)

    def elapsed_time(self, end: "Event") -> float:
        """Milliseconds of the device between two events that have happened."""
        machine().refuse_in_captures("a question to an event")
        if not (self.enable_timing and end.enable_timing):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if not (self.recorded and end.recorded) or self.done < self.recorded or end.done < end.recorded:
            raise RuntimeError("CUDA error: device not ready")
        return 1000 * (end.seconds[end.done] - self.seconds[self.done])

    def query(self) -> bool:
        machine().refuse_in_captures("a question to an event")
        for _ in range(machine().patience()):
            machine().step()
        return self.done >= self.recorded

    def synchronize(self) -> None:
        """Wait. Who waits does not drive the device, unless nobody else does: or the wait would hide what it misses."""
        machine().refuse_in_captures("a wait for an event")
        seen, since = -1, time.monotonic()
        while self.done < self.recorded:
            if machine().issued != seen:
                seen, since = machine().issued, time.monotonic()
            if time.monotonic() - since < _IDLE_SECONDS:
                time.sleep(0.0005)
            elif not machine().step() and self.done < self.recorded:
                raise RuntimeError("streams wait for each other, and the host for them")


class Graph:
    """A CUDA graph: work that was captured, to be done at each replay."""

    def __init__(self, keep_graph: bool = False):
        self.work: list[Work] = []
        self.streams: set[Stream] = set()
        self.open: set[Stream] = set()  # that have captured something the first one does not wait for yet
        self.origin: Stream | None = None
        self.mode, self.thread, self.is_valid = "global", 0, True

    def capture_begin(self, pool: object = None, capture_error_mode: str = "global", **_: Any) -> None:
        self.mode, self.thread = capture_error_mode, threading.get_ident()
        self.origin = machine().current()
        if self.origin.number == 0:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream")
        self.streams = {self.origin}
        machine().captures.append(self)

    def capture_end(self) -> None:
        machine().captures.remove(self)
        if not self.is_valid:
            raise RuntimeError("operation failed due to a previous error during capture")
        if self.open:
            raise RuntimeError("capture ended with streams that were not joined")

    def replay(self) -> None:
        stream = machine().current(self.origin and self.origin.device)
        for work in self.work:
            machine().enqueue(stream, work)

    def reset(self) -> None:
        self.work = []

    def pool(self) -> object:
        return (0, 1)


class Machine:
    """Two devices, and what the host may ask of them.

    Args:
        seed: Decides the order of work.
        eagerness: How likely the device does a piece of work whenever one is issued.
        mode_of_thread: Returns the calling thread's mode during captures: 2 is relaxed.

    Attributes:
        issued: How many pieces of work were issued.
        sync_debug: As in ``torch.cuda.set_sync_debug_mode``: "error" has waits of operators raise.
        waits: What the host waited for by operators.
        clock: The host's seconds, before which no work begins that is issued then.
        seconds: How far each stream has come.
        statistics: The allocator's, which a test may set.
    """

    def __init__(self, seed: int, eagerness: float, mode_of_thread: Callable[[], int]):
        self._random, self._eagerness, self._mode = random.Random(seed), eagerness, mode_of_thread
        self._weights: dict[Stream, float] = {}
        self._local = threading.local()
        self._main = threading.current_thread()
        self._lock = threading.RLock()
        self.queues: dict[Stream, deque[tuple[Callable[[], bool], Work]]] = {}
        self.dealt = [itertools.count(), itertools.count()]
        self.captures: list[Graph] = []
        self.issued = 0
        self.sync_debug: Any = "default"
        self.waits: list[str] = []
        self.clock: Callable[[], float] = lambda: 0.0
        self.seconds: dict[Stream, float] = {}
        self.statistics: dict[str, float] = {}
        self._busy: Any = None  # the stream whose work is being done

    @property
    def device(self) -> int:
        """The device of the calling thread."""
        return getattr(self._local, "device", 0)

    def index_of(self, device: Any) -> int:
        """Return the index of a device: of a stream, a tensor, a name, a number; the current one if None."""
        if device is None or (isinstance(device, str | torch.device) and torch.device(device).index is None):
            return self.device
        return device if isinstance(device, int) else torch.device(device).index

    @contextlib.contextmanager
    def on_device(self, device: Any) -> Iterator[None]:
        before, self._local.device = self.device, self.index_of(getattr(device, "device", device))
        try:
            yield
        finally:
            self._local.device = before

    @contextlib.contextmanager
    def on_stream(self, stream: Stream | None) -> Iterator[None]:
        if stream is None:
            yield
            return
        streams, device = self._streams(), self.device
        before = streams.get(stream.index)
        streams[stream.index], self._local.device = stream, stream.index
        try:
            yield
        finally:
            self._local.device = device
            streams.pop(stream.index)
            if before is not None:
                streams[stream.index] = before

    def _streams(self) -> dict[int, Stream]:
        if not hasattr(self._local, "streams"):
            self._local.streams = {}
        return self._local.streams

    def current(self, device: Any = None) -> Stream:
        """Return the calling thread's current stream of a device."""
        index = self.index_of(device)
        return self._streams().get(index) or Stream(index, 0)

    def capture_of(self, stream: Stream) -> Graph | None:
        return next((graph for graph in self.captures if stream in graph.streams), None)

    def enqueue(self, stream: Stream, work: Work, ready: Callable[[], bool] = lambda: True) -> None:
        """Issue work, or capture it."""
        with self._lock:
            graph = self.capture_of(stream)
            if graph is not None:
                graph.work.append(work)
                if stream != graph.origin:
                    graph.open.add(stream)
                return
            issued = self.clock()

            def begun() -> None:
                self._busy = stream
                self.pass_until(stream, issued)
                work()

            self.queues.setdefault(stream, deque()).append((ready, begun))
            self.issued += 1
            while self._random.random() < self._eagerness and self.step():
                pass

    def pass_until(self, stream: Stream, seconds: float) -> None:
        self.seconds[stream] = max(self.seconds.get(stream, 0.0), seconds)

    def sleep(self, seconds: float) -> None:
        """Have the current stream be busy for a while."""
        self.enqueue(self.current(), lambda: self.pass_until(self._busy, self.seconds[self._busy] + seconds))

    def record(self, event: Event, stream: Stream) -> None:
        with self._lock:
            event.capture = self.capture_of(stream)
            if event.capture is None:
                event.recorded += 1
                at = event.recorded

                def happen() -> None:
                    event.seconds[at], event.done = self.seconds[stream], max(event.done, at)

                self.enqueue(stream, happen)
            event.stream = stream

    def wait(self, stream: Stream, event: Event) -> None:
        with self._lock:
            graph, captured = self.capture_of(stream), event.capture if event.capture in self.captures else None
            if captured is not None:
                if graph not in (None, captured):
                    raise RuntimeError("a capture waits for another")
                captured.streams.add(stream)
                captured.open.add(stream)
                if stream == captured.origin:
                    captured.open -= {stream, event.stream}
            elif graph is not None and event.recorded:
                self._invalidate(graph, "a capture depends on work outside of it")
            elif event.recorded:
                at = event.recorded
                self.enqueue(stream, lambda: self.pass_until(stream, event.seconds[at]), lambda: event.done >= at)

    def step(self) -> bool:
        """Do a piece of work of some stream; return whether there was one that may be done."""
        with self._lock:
            heads = [stream for stream, queue in self.queues.items() if queue and queue[0][0]()]
            if not heads:
                return False
            for stream in heads:
                self._weights.setdefault(stream, self._random.choice([0.002, 1.0]))
            (stream,) = self._random.choices(heads, [self._weights[head] for head in heads])
            self.queues[stream].popleft()[1]()
            return True

    def patience(self) -> int:
        """Return how much the device does between two questions of the host."""
        return self._random.randrange(60)

    def run_until(self, done: Callable[[], bool]) -> None:
        while not done():
            if not self.step() and not done():
                raise RuntimeError("streams wait for each other")

    def synchronize(self, device: Any = None) -> None:
        self.refuse_in_captures("a wait for the device")
        self.run_until(lambda: not any(self.queues.values()))

    def wait_for_operator(self, what: str) -> None:
        """Wait for the current stream, as an operator does that needs a value on the host."""
        stream = self.current()
        if (graph := self.capture_of(stream)) is not None:
            self._invalidate(graph, f"{what}: {_CAPTURING}")
        if self.sync_debug in ("error", 2) and threading.current_thread() is self._main:
            raise HiddenWaitError(what)
        if self.sync_debug in ("warn", 1):
            warnings.warn(f"called a synchronizing CUDA operation: {what}", stacklevel=2)
        self.waits.append(what)
        self.run_until(lambda: not self.queues.get(stream))

    def refuse_in_captures(self, what: str) -> None:
        """Refuse what CUDA calls unsafe: in a thread that captures, and in all while somebody captures globally."""
        for graph in list(self.captures):
            is_own = graph.thread == threading.get_ident() and graph.mode != "relaxed"
            if self._mode() != 2 and (is_own or graph.mode == "global"):
                self._invalidate(graph, f"{what}: {_CAPTURING}")

    def _invalidate(self, graph: Graph, why: str) -> None:
        graph.is_valid = False
        raise RuntimeError(f"CUDA error: {why}")

    def is_capturing(self) -> bool:
        return self.capture_of(self.current()) is not None


_machines: list[Machine] = []


def machine() -> Machine:
    """The machine that is simulated now."""
    return _machines[-1]
