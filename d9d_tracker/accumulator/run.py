"""The run a training loop logs to: values merge into device buffers, also under torch.compile and CUDA graphs."""

from collections.abc import Mapping
from numbers import Real

import torch

from d9d_tracker.base import BaseTrackerRun
from d9d_tracker.config import AccumulatorConfig, Binning
from d9d_tracker.errors import TrackerTypeError, TrackerValueError, fail
from d9d_tracker_kernels import check_values

from .buffers import Buffers
from .collector import Collector
from .delivery import Delivery
from .recompute import is_recomputing
from .registry import REDUCTIONS, ContextItems, HistogramSeries, Reduction, ScalarSeries, check_context, label
from .scalars import Number


class AccumulatingRun(BaseTrackerRun):
    """Accumulates what is logged on the device and sends it to a backend once per window.

    A tracker has one such object and opens it again for each of its runs, so that compiled code that refers to it
    needs no recompilation.

    Args:
        buffers: The device state.
        config: How to accumulate.
    """

    def __init__(self, buffers: Buffers, config: AccumulatorConfig):
        self.is_open = False
        self._buffers = buffers
        self._config = config
        self._context: ContextItems = ()
        self._token = buffers.scalar_series.token
        self._collector: Collector | None = None
        self._delivery: Delivery | None = None

    def set_step(self, step: int) -> None:
        """Begin a step, on the host, between steps. Never waits for the device or the backend.

        Args:
            step: Index of the step: not negative, never smaller than the one before. The same step again goes on.

        Raises:
            TrackerTypeError: If it is not an int.
            TrackerValueError: If it goes backwards, the run is closed, or a CUDA graph is being captured.
        """
        self._refuse_inside_graphs("set_step")
        self._refuse_if_closed("set_step")
        if isinstance(step, bool) or not isinstance(step, int):
            raise TrackerTypeError(f"set_step({step!r}): a step is an int, not {type(step).__name__}; pass int(step)")
        if step < self._buffers.step:
            raise TrackerValueError(
                f"set_step({step}): the run is at step {self._buffers.step} and steps never go back; to repeat steps, "
                "resume from a checkpoint of that step or open another run"
            )
        if step > self._buffers.step:
            window = self._buffers.advance(step)
            if window is not None:
                self._open_collector().put(window, mid_step=False)

    def set_context(self, context: dict[str, str]) -> None:
        """Replace the persistent context.

        Args:
            context: Tag names and values, attached to all following values.

        Raises:
            TrackerTypeError: If it is not a ``dict[str, str]``.
        """
        check_context("set_context", context)
        self._context = tuple(sorted(context.items()))

    def scalar(
        self,
        name: str,
        value: Number,
        context: dict[str, str] | None = None,
        *,
        reduce: Reduction = "mean",
        weight: Number | None = None,
    ) -> None:
        """Merge one number into the point of the current step.

        Args:
            name: Name of the series.
            value: A number, or a tensor of one element, of any real dtype. It is detached, never kept alive.
            context: Tags for this value alone; merged with the persistent context, over which they win.
            reduce: How several values of one step combine; a series has one reduction.
            weight: Weight in a mean, a number or a tensor of one element: the number of tokens, for example.

        Raises:
            TrackerTypeError: If the value is neither a real number nor a real tensor.
            TrackerValueError: If the tensor has not exactly one element, lies on a device other than the buffers', the
                name is empty, the reduction is not that of the series, the slots ran out, or the run is closed.
        """
        self.scalars({name: value}, context, reduce=reduce, weight=weight)

    def scalars(
        self,
        values: Mapping[str, Number],
        context: dict[str, str] | None = None,
        *,
        reduce: Reduction = "mean",
        weight: Number | None = None,
    ) -> None:
        """Merge many numbers at once: cheaper to run, and much cheaper to compile, than as many ``scalar`` calls.

        Args:
            values: Name and value of each series; see ``scalar``.
            context: Tags for these values alone; merged with the persistent context, over which they win.
            reduce: How several values of one step combine; a series has one reduction.
            weight: Weight of all the values in a mean.

        Raises:
            TrackerTypeError: See ``scalar``.
            TrackerValueError: See ``scalar``.
        """
        if not torch.compiler.is_compiling() and is_recomputing():
            return
        items = self._merged(context)
        slots: list[int] = []
        numbers: list[Number] = []
        for name, value in values.items():
            slots.append(_scalar_slot(self._buffers, self._token, self.is_open, name, items, reduce))
            numbers.append(self._number(name, items, value))
        weighted = next(iter(values), "")
        if weight is not None and reduce != "mean":
            fail(TrackerValueError, f"{label(weighted, items)}: a weight has no meaning with reduce={reduce!r}")
        factor = None if weight is None else self._number(f"{weighted} (weight)", items, weight)
        if slots:
            self._buffers.scalars.write(slots, numbers, reduce, factor)

    def bins(
        self,
        name: str,
        values: torch.Tensor,
        context: dict[str, str] | None = None,
        *,
        binning: Binning | None = None,
        every: int | None = None,
    ) -> None:
        """Count a population into the histogram of the current window.

        Args:
            name: Name of the series.
            values: The population: any shape and stride, float16, bfloat16, float32, float64, bool or an integer
                dtype, on the device of the buffers. An empty tensor gives an empty histogram.
            context: Tags for this population alone; merged with the persistent context, over which they win.
            binning: How to bin it; a series has one binning. By default the one of the configuration.
            every: Count on steps divisible by this only; the others skip the work on the device. By default the one of
                the configuration.

        Raises:
            TrackerTypeError: If it is not a tensor, or one that cannot be binned (complex, quantized, sparse).
            TrackerValueError: If it lies on another device, ``every`` is not positive, the name is empty, the binning
                is not that of the series, the slots ran out, or the run is closed.
        """
        if not torch.compiler.is_compiling() and is_recomputing():
            return
        items = self._merged(context)
        self._check_population(name, items, values)
        slot, *parameters = _histogram_slot(
            self._buffers, self._token, self.is_open, name, items, binning, every, self._config
        )
        bank, step = self._buffers.histograms, self._buffers.device_step
        torch.ops.d9d_tracker.histogram_(
            values.detach(), bank.counts, bank.moments, bank.partials, step, slot, *parameters
        )

    def flush(self) -> None:
        """Block until everything logged so far, the current step included, is with the backend.

        Waits ``flush_timeout`` seconds at most; what the backend has not accepted by then is reported and stays queued.

        Raises:
            TrackerValueError: If the run is closed or a CUDA graph is being captured.
        """
        self._refuse_inside_graphs("flush")
        self._refuse_if_closed("flush")
        self._send_rest()
        assert self._delivery is not None
        self._delivery.flush(self._config.flush_timeout)

    def attach(self, collector: Collector, delivery: Delivery) -> None:
        """Open the run: what is logged goes to a backend from now on.

        Args:
            collector: Takes the windows.
            delivery: Takes the records of the windows.
        """
        self._collector, self._delivery = collector, delivery
        self._context = ()
        self.is_open = True

    def detach(self) -> bool:
        """Close the run: send the partial window, deliver what can be delivered in time, and end the threads.

        Returns:
            Whether the backend let go of its thread.
        """
        assert self._collector is not None
        assert self._delivery is not None
        try:
            self._send_rest()
        finally:
            self.is_open = False
            self._collector.close()
            ended = self._delivery.close(self._config.flush_timeout)
        return ended

    def settle(self) -> None:
        """Wait until every window that left the device is with the backend, or else in the backlog on disk."""
        if self._collector is not None and self._delivery is not None:
            self._collector.drain()
            self._delivery.settle(self._config.flush_timeout)

    def _send_rest(self) -> None:
        assert self._collector is not None
        self._collector.put(self._buffers.close_window(), mid_step=True)
        self._collector.drain()

    def _open_collector(self) -> Collector:
        assert self._collector is not None
        return self._collector

    def _merged(self, context: dict[str, str] | None) -> ContextItems:
        if context is None:
            return self._context
        _check_call_context(context)
        return tuple(sorted({**dict(self._context), **context}.items()))

    def _number(self, name: str, items: ContextItems, value: object) -> Number:
        if isinstance(value, torch.Tensor):
            return self._one_element(name, items, value)
        if isinstance(value, bool | int | float):
            return value
        if not torch.compiler.is_compiling() and isinstance(value, Real):  # NumPy's numbers
            return float(value)
        received = f"{value!r} of type {type(value).__name__}"
        fail(TrackerTypeError, f"{label(name, items)}: a scalar is a number or a tensor of one element, not {received}")

    def _one_element(self, name: str, items: ContextItems, value: torch.Tensor) -> Number:
        if value.numel() != 1:
            fail(
                TrackerValueError,
                f"{label(name, items)}: a scalar has one element, not shape {tuple(value.shape)}; reduce it first, "
                "with .mean() for example, or log its distribution with bins",
            )
        if value.is_complex():
            fail(TrackerTypeError, f"{label(name, items)}: {value.dtype} is not real; log .abs() or its parts")
        if value.device == self._buffers.device:
            return value
        if value.device.type == "cpu":
            return value.to(self._buffers.device) if torch.compiler.is_compiling() else float(value.item())
        fail(
            TrackerValueError,
            f"{label(name, items)}: the value is on {value.device} and the buffers are on {self._buffers.device}; set "
            "accumulator.device to where the training runs",
        )

    def _check_population(self, name: str, items: ContextItems, values: object) -> None:
        if not isinstance(values, torch.Tensor):
            fail(TrackerTypeError, f"{label(name, items)}: bins takes a tensor, not {type(values).__name__}")
        try:
            check_values(values, self._buffers.device)
        except TypeError as error:
            fail(TrackerTypeError, f"{label(name, items)}: {error}")
        except ValueError as error:
            fail(TrackerValueError, f"{label(name, items)}: {error}; or set accumulator.device")

    def _refuse_inside_graphs(self, method: str) -> None:
        if torch.compiler.is_compiling():
            fail(TrackerValueError, f"{method} was called inside compiled code; call it on the host, between steps")
        if self._buffers.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise TrackerValueError(
                f"{method} was called while a CUDA graph is captured, which would not repeat it on replay; call it "
                "between replays"
            )

    def _refuse_if_closed(self, method: str) -> None:
        if not self.is_open:
            raise TrackerValueError(f"{method}: the run is closed; log inside `with tracker.open(...) as run`")


@torch.compiler.assume_constant_result
def _scalar_slot(buffers: Buffers, token: str, is_open: bool, name: str, items: ContextItems, reduce: Reduction) -> int:
    _refuse_closed_series(is_open, name, items)
    if reduce not in REDUCTIONS:
        raise TrackerValueError(f"{label(name, items)}: reduce={reduce!r} is not one of {', '.join(REDUCTIONS)}")
    return buffers.scalar_series.slot(ScalarSeries(name, items, reduce))


@torch.compiler.assume_constant_result
def _histogram_slot(
    buffers: Buffers,
    token: str,
    is_open: bool,
    name: str,
    items: ContextItems,
    binning: Binning | None,
    every: int | None,
    config: AccumulatorConfig,
) -> tuple[int, int, int, int, float, float]:
    _refuse_closed_series(is_open, name, items)
    cadence = config.bins_every if every is None else every
    if isinstance(cadence, bool) or not isinstance(cadence, int) or cadence < 1:
        raise TrackerValueError(f"{label(name, items)}: every={every!r} is not a positive int; leave it out or pass 1")
    chosen = config.binning if binning is None else binning
    slot = buffers.histogram_series.slot(HistogramSeries(name, items, chosen))
    return (slot, cadence, *chosen.parameters())


@torch.compiler.assume_constant_result
def _check_call_context(context: object) -> None:
    check_context("context", context)


def _refuse_closed_series(is_open: bool, name: str, items: ContextItems) -> None:
    if not is_open:
        raise TrackerValueError(f"{label(name, items)}: the run is closed; log inside `with tracker.open(...) as run`")
