"""The device side of a tracker: every buffer that logging touches, and the clock of its windows."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any, Literal

import numpy as np
import torch

from d9d_tracker.config import AccumulatorConfig
from d9d_tracker.devices.arrived import Arrived
from d9d_tracker.devices.devices import device_of
from d9d_tracker.devices.event_ring import Elapsed
from d9d_tracker.devices.event_wait import wait_until
from d9d_tracker.devices.streams import Streams
from d9d_tracker.record import Record
from d9d_tracker.series.registry import Registry
from d9d_tracker.series.series import VALUE_LANE, HistogramSeries, Reduction, ScalarSeries
from d9d_tracker.tracing import for_real, is_under_fake_mode, mark_static, modes_around
from d9d_tracker.windows.clock import Clock, Now, make_clock
from d9d_tracker.windows.host_window import HostWindow
from d9d_tracker.windows.late import Late
from d9d_tracker.windows.readings import Reading
from d9d_tracker_kernels.bank import allocate
from d9d_tracker_kernels.binning import CALLS, CELLS, HEADER, MOMENTS
from d9d_tracker_kernels.device import GPU, has_kernels
from d9d_tracker_kernels.lanes import COUNT, LANES

from .elsewhere import Elsewhere
from .places import Places, Target
from .scalars import Number, ScalarBank
from .staging import Staging, Window

_Change = tuple[Callable[..., object], tuple[Any, ...]]


class Buffers:
    """All device state of a tracker. Its tensors keep their addresses for life.

    Attributes:
        device: Where the tensors are.
        is_gpu: Whether that is a GPU.
        is_plain: Whether ``accumulator.device`` has no bank of its own, so that the tensors are on the host.
        host: What numbers of eager code are merged by, quickest; None if they go another way.
        elsewhere: What was logged on other devices, until the window ends.
        scalars: Scalar state.
        histograms: Histogram state: counts, moments and the kernels' scratch.
        device_step: The current step for kernels to read, int64 of shape ``[1]``.
        scalar_series: Slots of the scalar series.
        histogram_series: Slots of the histogram series.
        places: What compiled code holds of both.
        resolution: Whether scalars have one point per ``"step"`` or per ``"window"``.
        sync_every: Number of steps in a window.
        now: Where the run stands: what ``clock`` has, as a plain tuple.
        staging: Where windows lie on their way to the host.
        outbox: Windows that were swapped and not yet taken over, oldest first.
        readings: What instruments have read; it is appended to in C, so that it needs no lock.
        is_awaited: Tells whether the next window is needed even if nothing was logged in it.

    Whatever changes the bank in eager code holds one lock: several threads may log, and step, flush or close meanwhile.
    """

    def __init__(self, config: AccumulatorConfig):
        values_on = device_of(config.device)
        device = values_on if has_kernels(values_on) else torch.device("cpu")
        self.is_plain = values_on.type != device.type
        self.resolution: Literal["step", "window"] = config.scalar_resolution
        self.sync_every = config.sync_every
        self._per_step = self.resolution == "step"
        rows = config.sync_every if self._per_step else 1
        # Tensors born in inference mode could never be written outside it.
        with torch.inference_mode(False):
            self.scalars = ScalarBank(rows, config.max_scalars, device)
            self.histograms = allocate(config.max_histograms, device)
            self.device_step = self.scalars.step
            self.device = self.device_step.device
            self.is_gpu = self.device.type == GPU
            numbers = rows * LANES * config.max_scalars + config.max_histograms * (MOMENTS + HEADER + CELLS)
            self.staging = Staging(numbers, self.device)
        bank = self.histograms
        for tensor in (bank.counts, bank.moments, bank.partials, bank.places, self.device_step):
            mark_static(tensor)
        self.scalar_series: Registry[ScalarSeries] = Registry(config.max_scalars, "max_scalars", "scalar")
        self.histogram_series: Registry[HistogramSeries] = Registry(config.max_histograms, "max_histograms", "bins")
        self.scalar_series.other, self.histogram_series.other = self.histogram_series, self.scalar_series
        with torch.inference_mode(False):
            self.places = Places(self.scalar_series, self.histogram_series, self.device)
        self.now: Now = Clock(0, time.time(), 0, [], [])
        self.outbox: deque[Window] = deque()
        self._lock = threading.RLock()  # reentrant, because a signal handler may log while set_step holds it
        self._is_held: Callable[[], bool] = self._lock._is_owned  # pyright: ignore[reportAttributeAccessIssue] as Condition does
        self._due: tuple[_Change, ...] = ()
        self._deferred: deque[_Change] = deque()
        self._late = Late()
        self.readings: deque[Reading] = deque()
        self._steps = self.scalars.host or self.scalars
        self.is_awaited: Callable[[], bool] = lambda: True
        self._streams = Streams()
        self.elsewhere = Elsewhere(self.scalars, self.histograms, self._streams)
        self.host = None if self.is_plain else self.scalars.host

    def start(self) -> None:
        """Empty everything for a new run. The places that compiled code knows mean nothing until they are refilled."""
        self.follow()
        self._due = ()
        self._deferred.clear()
        self._late = Late()
        self.readings.clear()
        self.outbox.clear()
        self.scalar_series.clear()
        self.histogram_series.clear()
        self.places.start()
        self.scalars.reset()
        self.histograms.reset_()
        self.elsewhere.reset()
        self.host = None if self.is_plain else self.scalars.host
        self.now = Clock(0, time.time(), 0, [], [])
        self.device_step.fill_(0)

    def follow(self) -> None:
        """Have this thread's stream wait for the one that changed the bank last, in eager code, if it is another."""
        if self.is_gpu:
            self._streams.follow(self.device)

    @property
    def clock(self) -> Clock:
        """Where the run stands."""
        return make_clock(self.now)

    @property
    def without_slot(self) -> int:
        """How many values had no slot left in this run."""
        return self.scalar_series.dropped + self.histogram_series.dropped

    def change(self, change: Callable[..., object], *arguments: Any) -> None:
        """Change the bank in eager code, at once.

        What a signal handler or a finalizer logs while its own thread changes the bank is merged right after that:
        between the two halves of a change it would be lost.

        Args:
            change: The change, exactly once.
            *arguments: Its arguments.
        """
        if self._is_held():
            self._deferred.append((change, arguments))
            return
        with self._lock:
            if self._deferred:  # it came first
                self._make_deferred()
            self.follow()
            change(*arguments)
        while self._deferred:  # also what came as the lock was let go
            with self._lock:
                self._make_deferred()

    def add_late(self, records: Sequence[Record], hparams: dict[str, Any]) -> None:
        """Add what comes finished to the window: numbers of steps that have begun, and plain JSON hyperparameters."""
        self.change(lambda: self._late.add(records, hparams))

    def restore(self, clock: Clock, late: Late) -> None:
        """Go on where a state was taken, once its values are back in the bank."""
        self.now, self._late = clock, late
        self.device_step.fill_(clock.step)

    def has_bank(self, values: Iterable[Any]) -> bool:
        """Tell whether numbers and tensors are merged by the bank's own operators; may be traced."""
        if self.is_gpu:
            return True
        return not (self.is_plain or any(isinstance(value, torch.Tensor) and not value.is_cpu for value in values))

    def merge(self, target: Target, values: list[Number], reduce: Reduction, weight: Number | None) -> None:
        """Merge scalars, in eager code; see ``ScalarBank.write``. They may be on devices that have no bank."""
        if self.has_bank((*values, weight)) and (self.is_gpu or self.host is not None):
            self.scalars.write(target, values, reduce, weight)
        else:
            self.merge_plain(target, values, VALUE_LANE[reduce], weight)

    def merge_plain(self, target: Target, values: Sequence[Number], lane: int, weight: Number | None) -> None:
        """Merge scalars that are on devices without a bank, and what is logged beside them: order counts."""
        self.host = None
        self.elsewhere.merge(self.clock, target, values, lane, weight)

    def merge_vector(self, slots: list[int], *made: Any) -> None:
        """Merge vectors that are on devices without a bank; see ``Elsewhere.merge_vector``."""
        self.elsewhere.merge_vector(self.clock, slots, *made)

    def count(self, target: Target, populations: list[torch.Tensor], every: int, *binning: Any) -> None:
        """Count populations into histograms, by cadence and binning, see ``histogram_at``; may be traced."""
        at, table, _ = target
        if not torch.compiler.is_compiling() and any(values.device != self.device for values in populations):
            every_one = list(zip(at, populations, strict=True))
            if self.clock.step % every == 0:
                there = [one for one in every_one if one[1].device != self.device]
                self.elsewhere.count(self.clock, there, table, binning)
            here = [one for one in every_one if one[1].device == self.device]
            at, populations = [place for place, _ in here], [values for _, values in here]
        if populations:
            self.histograms.count_(populations, at, table, self.device_step, every, *binning)

    def add_counts(self, values: torch.Tensor, at: int, every: int, table: torch.Tensor) -> None:
        """Add counts, int of shape ``[n]``, to a histogram of integers, at its cadence; may be traced."""
        if values.device == self.device:
            bank = self.histograms
            torch.ops.d9d_tracker.add_counts_(values, bank.counts, bank.moments, table, self.device_step, at, every)
        elif self.clock.step % every == 0:
            self.elsewhere.add_counts(self.clock, values, at, table)

    def merge_histogram(self, row: int, counts: np.ndarray, moments: np.ndarray) -> None:
        """Merge a finished histogram into a slot, in eager code, without a wait for the device."""
        parts = [torch.from_numpy(part) for part in (counts, moments)]
        if self.is_gpu:
            parts = [part.pin_memory().to(self.device, non_blocking=True) for part in parts]
        self.histograms.merge_(row, *parts, self.clock.step)

    def advance(self, step: int) -> bool:
        """End the current step and begin another; return whether a window with values is now in the outbox."""
        with self._lock:
            if self._due or self._deferred:
                self._finish()
            now, slots = self.now, len(self.scalar_series.series)
            _, _, first, filed, times, rows, passed, windows, copies = now
            completes = passed + 1 == self.sync_every
            files = self._per_step or completes
            after = (step, time.time(), first, filed, times, rows + files, passed + 1, windows, copies)
            if files and not (completes or self.is_gpu):  # in few frames, as the steps of a CPU are cheap
                self._due = ((self._file_and_begin, (now, after, slots)),)
                try:
                    self._file_and_begin(now, after, slots)  # which no mode sees
                    self._due = ()
                finally:
                    if self._due or self._deferred:
                        self._make(())
            elif not files:
                self._finish(((self._begin, (after, 0)),))
            elif not completes:
                self._finish(((self._file_and_begin, (now, after, slots)),))
            elif completes := not self._is_silent(rows, slots):
                self._end_window(make_clock(after), slots, unfinished=None)
            else:
                self._finish(((self._begin, ((step, after[1], step, [], [], 0, 0, windows, copies), slots)),))
        return completes

    def _is_silent(self, rows: int, slots: int) -> bool:
        """Whether nothing was logged in the window, as far as that is known without a wait, and nobody waits for it."""
        if slots or self.histogram_series.series:
            host = self.scalars.host
            if host is None or self.elsewhere.is_used or host.current[COUNT, :slots].any():
                return False
            calls = self.histograms.counts.numpy()[: len(self.histogram_series.series), CALLS]
            if host.window[:rows, COUNT, :slots].any() or calls.any():
                return False
        return not (self.readings or self._late or self.is_awaited())

    def close_window(self, is_last: bool = False) -> None:
        """End the window early, with the current step as far as it got. It is then in the outbox."""
        with self._lock:
            self._finish()
            after = self.clock._replace(rows=self.clock.rows + 1)
            self._end_window(after, len(self.scalar_series.series), None if is_last else after.step, is_last)

    def _finish(self, changes: tuple[_Change, ...] = ()) -> None:
        """Make changes, after those still due. An exception from a signal handler finds none or all of them made.

        SIGINT and SIGTERM may raise between any two lines of ``advance``, and what is then sent on the way out must
        hold the step once. That is why all changes become due in one call, every one of them may be made twice, and
        none is forgotten before it was made.

        Args:
            changes: Functions and their arguments, in this order.
        """
        if modes_around() and is_under_fake_mode():
            with for_real():
                self._finish(changes)
                return
        if self.is_gpu:
            self.follow()
        self._make(changes)

    def _make(self, changes: tuple[_Change, ...]) -> None:
        self._due += changes
        try:
            self._make_due()
        except BaseException:
            self._make_due()
            raise
        if self._deferred:
            self._make_deferred()

    def snapshot(self, timeout: float) -> tuple[Clock, HostWindow, Late]:
        """Copy what has not left the device to the host.

        Args:
            timeout: Seconds to wait for the device, at most.

        Returns:
            Where the run stands; the filed rows and, as the last row, the current step; and what came finished.

        Raises:
            RuntimeError: If the device does not answer, or has failed.
        """
        with self._lock:
            self._finish()
            clock, scalars, histograms = self.clock, self.scalar_series.series[:], self.histogram_series.series[:]
            late = Late(self._late.records[:], dict(self._late.hparams))
            readings = list(self.readings)
            rows = self.scalars.window[: clock.rows, :, : len(scalars)], self.scalars.current[:, : len(scalars)]
            host, ready, arrived = self._copy(rows, len(histograms), waits=False)
            self._make_deferred()
        try:
            awaited = [value.is_there for *_, value in readings if isinstance(value, Elapsed)]
            wait_until([*([] if ready is None else [ready.query]), *awaited], timeout)
            steps, times = [*clock.filed[: clock.rows], clock.step], [*clock.times[: clock.rows], clock.began]
            came = Late(readings=readings)
            window = Window(0, steps, times, scalars, histograms, came, packed=host, arrived=arrived)
            return clock, window.read().copy(), late
        finally:
            self.staging.give_back(host)

    def _make_deferred(self) -> None:
        while self._deferred:
            change, arguments = self._deferred.popleft()
            change(*arguments)

    def _make_due(self) -> None:
        while self._due:
            change, arguments = self._due[0]
            change(*arguments)
            self._due = self._due[1:]

    def _file(self, clock: Clock, slots: int) -> None:
        """Put the current step away as the next row of the window."""
        self._steps.file(clock.rows, slots)
        clock.times[clock.rows :] = (clock.began,)
        clock.filed[clock.rows :] = (clock.step,)

    def _file_and_begin(self, before: Now, after: Now, slots: int) -> None:
        """Do both, as most steps end: one change is cheaper than two. What has been filed may be gone by now."""
        step, began, _, filed, times, row, _, _, _ = before
        if len(filed) == row:
            self._steps.file(row, slots)
            if len(times) == row:
                times.append(began)
            filed.append(step)
        self._steps.begin(slots, after[0])
        self.now = after

    def _begin(self, after: Now, slots: int, histograms: int | None = None) -> None:
        """Begin a step; and a window, if one was sent off, with so many histograms."""
        self._steps.begin(slots, after[0])
        self.now = after
        if histograms is not None:
            self.histograms.reset_(histograms)
            if self.elsewhere.is_used:
                self.elsewhere.reset(histograms)

    def _end_window(self, after: Clock, slots: int, unfinished: int | None, is_last: bool = False) -> None:
        """Send the window off with the current step, and begin the next one at the step of ``after``."""
        scalars, histograms = self.scalar_series.series[:], self.histogram_series.series[:]
        step, began, *_, windows, copies = after
        file = self._file, (self.clock, slots)
        send = self._send, (after, unfinished, is_last, scalars, histograms)
        following = step, began, step, [], [], 0, 0, windows + 1, copies + 1
        self._finish((file, send, (self._begin, (following, slots, len(histograms)))))

    def _send(
        self,
        clock: Clock,
        unfinished: int | None,
        is_last: bool,
        scalars: list[ScalarSeries],
        histograms: list[HistogramSeries],
    ) -> None:
        if self.outbox and self.outbox[-1].index == clock.windows:
            if self.outbox[-1].late is self._late:
                self._late = Late()
            return
        # In C as well, so that a signal handler that raises loses none.
        self._late.readings.extend(map(deque.popleft, repeat(self.readings, len(self.readings))))
        steps, times = list(clock.filed[: clock.rows]), list(clock.times[: clock.rows])
        window = Window(clock.windows, steps, times, scalars, histograms, self._late, unfinished, is_last)
        try:
            lanes = self.scalars.window[: clock.rows, :, : len(scalars)]
            window.packed, window.ready, window.arrived = self._copy((lanes,), len(histograms))
        except Exception as error:  # out of memory, for one: the window is lost, and training goes on
            window.error = error
        self.outbox.append(window)
        self._late = Late()

    def _copy(
        self, lanes: Sequence[torch.Tensor], histograms: int, waits: bool = True
    ) -> tuple[torch.Tensor, torch.Event | None, Arrived | None]:
        """Start the one copy of a window, see ``Staging.copy``; return with it what was logged where no bank is."""
        arrived, moments, counts = None, self.histograms.moments[:histograms], self.histograms.counts[:histograms]
        if self.elsewhere.is_used:
            moments, counts, arrived = self.elsewhere.joined(moments, counts)
        return *self.staging.copy((*lanes, moments, counts.view(torch.float64)), waits), arrived
