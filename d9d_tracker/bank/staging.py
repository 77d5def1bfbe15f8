"""One window's way from the device to the host: packed, copied once, unpacked. The only room with streams."""

import contextlib
import queue
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from d9d_tracker.devices.arrived import Arrived, Parts
from d9d_tracker.devices.event_wait import relaxed, wait_for
from d9d_tracker.series.series import HistogramSeries, ScalarSeries
from d9d_tracker.windows.host_window import HostWindow
from d9d_tracker.windows.late import Late
from d9d_tracker.windows.readings import with_readings
from d9d_tracker_kernels.device import GPU, gpu

_HOST_BUFFERS = 2
_MOST_HOST_BYTES = 256 * 2**20
_LONGEST_WAIT_SECONDS = 1.0


class Staging:
    """Where windows are packed on the device, and where they lie on the host until they have become records.

    All of it is there from the beginning, so that no memory needs to be had in the midst of training. Should windows
    pile up on the host, more is asked for, up to 256 MiB; after that the next window waits for at most a second.

    Args:
        numbers: How many float64 a window has at most.
        device: Where the bank lies.

    Attributes:
        is_short: Whether windows should be read at once: the next may soon have to wait, or need memory that is pinned.
    """

    def __init__(self, numbers: int, device: torch.device):
        self._numbers = numbers
        self._most = max(_HOST_BUFFERS, _MOST_HOST_BYTES // (8 * numbers))
        self._is_gpu = device.type == GPU
        self.is_short = False
        self._has_waited = False
        self._stream = gpu.Stream(device) if self._is_gpu else None
        self._packed = torch.empty(numbers, dtype=torch.float64, device=device) if self._is_gpu else None
        self._ready: torch.Event | None = None
        self._buffers = 0
        # An event for each host buffer, for life: to make or destroy one beside somebody's capture would break it.
        self._events: dict[int, torch.Event] = {}
        # Unlike a lock of threading's, it is not left locked by a signal handler that raises: it is in C.
        self._free: queue.SimpleQueue[torch.Tensor] = queue.SimpleQueue()
        for _ in range(_HOST_BUFFERS):
            self._free.put(self._allocate())

    def copy(self, parts: Sequence[torch.Tensor], waits: bool = True) -> tuple[torch.Tensor, torch.Event | None]:
        """Pack a snapshot of float64 tensors and start its one copy; return the host buffer and its event, if any.

        One that does not wait for a host buffer gets one beyond the bound, until it is given back.
        """
        host = self._take() if waits or not self._free.empty() else self._allocate()
        most = 0 if self._is_gpu else _MOST_HOST_BYTES // (8 * self._numbers)
        self.is_short = self._buffers - self._free.qsize() > most // 2
        try:
            if self._stream is None or self._packed is None:
                _pack(parts, host)
                return host, None
            current = gpu.current_stream(self._packed.device)
            if self._ready is not None:
                current.wait_event(self._ready)  # the copy before, on the device; the host does not wait
            numbers = _pack(parts, self._packed)
            self._stream.wait_stream(current)
            with gpu.stream(self._stream):
                host[:numbers].copy_(self._packed[:numbers], non_blocking=True)
                self._ready = self._events[id(host)]
                self._ready.record(self._stream)
        except BaseException:
            self.give_back(host)
            raise
        return host, self._ready

    def give_back(self, host: torch.Tensor) -> None:
        """Take a host buffer back that has been read."""
        self._has_waited = False
        if self._buffers > self._most:
            self._buffers -= 1
        else:
            self._free.put(host)

    def _take(self) -> torch.Tensor:
        with contextlib.suppress(queue.Empty):
            return self._free.get_nowait()
        if self._buffers < self._most:
            with contextlib.suppress(RuntimeError, MemoryError):  # then one must come back
                return self._allocate()
        if not self._has_waited:
            self._has_waited = True  # training waits once, not in every window
            with contextlib.suppress(queue.Empty):
                return self._free.get(timeout=_LONGEST_WAIT_SECONDS)
        raise RuntimeError(f"all {self._buffers} host buffers are full of windows that were not read yet")

    def _allocate(self) -> torch.Tensor:
        with relaxed() if self._is_gpu else contextlib.nullcontext():
            buffer = torch.empty(self._numbers, dtype=torch.float64, device="cpu", pin_memory=self._is_gpu)
            if self._is_gpu:
                ready = gpu.Event(blocking=True)  # whoever waits for it sleeps
                ready.record(self._stream)
                self._events[id(buffer)] = ready
        self._buffers += 1
        return buffer


def _pack(parts: Sequence[torch.Tensor], into: torch.Tensor) -> int:
    numbers = 0
    target = into if into.device.type == GPU else into.numpy()  # on a CPU, by NumPy: torch's dispatcher would cost more
    for part in parts:
        end = numbers + part.numel()
        if isinstance(target, torch.Tensor):
            target[numbers:end].view(part.shape).copy_(part)
        else:
            target[numbers:end].reshape(part.shape)[...] = part.numpy()
        numbers = end
    return numbers


@dataclass(eq=False)
class Window:
    """A window on its way: the device has been told to copy, the host has not waited.

    Attributes:
        index: How many windows of the run came before.
        steps: The step of each row.
        times: When each of these steps began on the host, in seconds since the epoch.
        scalars: The scalar series at the time of the swap.
        histograms: The histogram series at the time of the swap.
        late: What came finished while it was open.
        unfinished: The last step, if more may be logged for it in this run.
        is_last: Whether nothing follows in this run.
        packed: The host buffer, float64 of one dimension; None if the copy could not even be started.
        ready: Recorded behind the copy, or None when the bank is on the CPU.
        arrived: What was logged on devices that have no bank, if anything.
        error: Why the copy could not be started.
    """

    index: int
    steps: list[int]
    times: list[float]
    scalars: list[ScalarSeries]
    histograms: list[HistogramSeries]
    late: Late = field(default_factory=Late)
    unfinished: int | None = None
    is_last: bool = False
    packed: torch.Tensor | None = None
    ready: torch.Event | None = None
    arrived: Arrived | None = None
    error: Exception | None = None

    def read(self) -> HostWindow:
        """Wait for all of it, what instruments have read included. Not for the training thread."""
        return with_readings(self.wait(), self.late.readings)

    def wait(self) -> HostWindow:
        """Wait for the copy and unpack it, as views of the host buffer. Not for the training thread."""
        if self.packed is None:
            raise RuntimeError(f"the window could not leave the device: {self.error!r}") from self.error
        if self.ready is not None:
            wait_for(self.ready)
        numbers = self.packed.numpy()
        host = HostWindow.of(numbers, self.index, self.steps, self.times, self.scalars, self.histograms)
        if self.arrived is not None:
            host = host.copy()  # a state may read the window, too
            self.arrived.merge_into(Parts(list(host.lanes), host.counts, host.moments))
        return host
