"""The run a training loop logs to: values merge into device buffers, also under torch.compile and CUDA graphs."""

import itertools
import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from d9d_tracker.base import BaseTrackerRun
from d9d_tracker.config import AccumulatorConfig, Binning
from d9d_tracker.errors import TrackerTypeError, TrackerValueError, fail

from .arguments import Number, check_context, check_mapping, check_names, check_number, check_population
from .backward import is_backward_traced
from .buffers import Buffers
from .collector import Collector
from .fanout import AnyDelivery
from .inputs import begin_inputs, end_inputs
from .recompute import check_place, check_traced_place, is_recomputing
from .registry import ContextItems, Reduction, label
from .runs import runs
from .slots import CLOSED, histogram_slot, scalar_slot
from .watch import Watch

Scope = Literal["global", "rank"]

logger = logging.getLogger("d9d_tracker")

_tokens = itertools.count()


class AccumulatingRun(BaseTrackerRun):
    """Accumulates what is logged on the device and sends it to a backend once per window.

    A tracker has one such object and opens it again for each of its runs, so that compiled code that refers to it
    needs no recompilation.

    Args:
        buffers: The device state.
        config: How to accumulate.

    Attributes:
        is_open: Whether it takes values.
        buffers: The device state.
        config: How to accumulate.
        watches: What ``watch`` began in this run.
    """

    def __init__(self, buffers: Buffers, config: AccumulatorConfig):
        self.is_open = False
        self.buffers = buffers
        self.config = config
        self._context: ContextItems = ()
        self._token = f"run {next(_tokens)}"
        runs[self._token] = self
        self._collector: Collector | None = None
        self._delivery: AnyDelivery | None = None
        self._rank = "0"
        self._stepped = False
        self.watches: list[Watch] = []

    def set_step(self, step: int) -> None:
        """Begin a step, on the host, between steps. Never waits for the device or the backend.

        Args:
            step: Index of the step: not negative, never smaller than the one before. The same step again goes on.

        Raises:
            TrackerTypeError: If it is not an int.
            TrackerValueError: If it goes backwards or does not fit into int64, the run is closed, or a CUDA graph is
                being captured.
        """
        self._refuse_inside_graphs("set_step")
        self._refuse_if_closed("set_step")
        if isinstance(step, bool) or not isinstance(step, int):
            raise TrackerTypeError(f"set_step({step!r}): a step is an int, not {type(step).__name__}; pass int(step)")
        if not 0 <= step < 2**63:
            raise TrackerValueError(f"set_step({step}): a step is between 0 and 2**63 - 1; count steps from the start")
        self._stepped = True
        if step < self.buffers.step:
            raise TrackerValueError(
                f"set_step({step}): the run is at step {self.buffers.step} and steps never go back; to repeat steps, "
                "resume from a checkpoint of that step or open another run"
            )
        if step > self.buffers.step:
            completed = self.buffers.advance(step)
            if completed:
                self._open_collector().put()

    def set_context(self, context: dict[str, str]) -> None:
        """Replace the persistent context.

        Args:
            context: Tag names and values, attached to all following values.

        Raises:
            TrackerTypeError: If it is not a ``dict[str, str]``.
            TrackerValueError: If the run is closed.
        """
        self._refuse_if_closed("set_context")
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
        scope: Scope = "global",
    ) -> None:
        """Merge one number into the point of the current step.

        Args:
            name: Name of the series.
            value: A number, or a tensor of one element, of any real dtype. It is detached, never kept alive. A
                ``DTensor`` must be replicated; every rank's copy counts. Compiled code copies a tensor on the CPU to
                the device without a wait; in pinned memory it must therefore keep its value for the step.
            context: Tags for this value alone; merged with the persistent context, over which they win.
            reduce: How several values of one step combine; a series has one reduction.
            weight: Weight in a mean, a number or a tensor of one element: the number of tokens, for example.
            scope: ``"global"`` combines the values of all ranks, ``last`` being that of the highest rank with a value
                in the step; ``"rank"`` keeps a series for each rank, with the context ``rank=<r>``.

        Raises:
            TrackerTypeError: If the value is neither a real number nor a real tensor.
            TrackerValueError: If the tensor has not exactly one element, lies on a device other than the buffers', the
                name is empty, the reduction is not that of the series, the slots ran out, or the run is closed.
        """
        self._merge([name], [value], context, reduce, weight, scope)

    def scalars(
        self,
        values: Mapping[str, Number],
        context: dict[str, str] | None = None,
        *,
        reduce: Reduction = "mean",
        weight: Number | None = None,
        scope: Scope = "global",
    ) -> None:
        """Merge many numbers at once: cheaper to run, and much cheaper to compile, than as many ``scalar`` calls.

        Args:
            values: Name and value of each series; see ``scalar``.
            context: Tags for these values alone; merged with the persistent context, over which they win.
            reduce: How several values of one step combine; a series has one reduction.
            weight: Weight of all the values in a mean.
            scope: See ``scalar``.

        Raises:
            TrackerTypeError: See ``scalar``.
            TrackerValueError: See ``scalar``.
        """
        check_mapping("scalars", values)
        self._merge(list(values.keys()), list(values.values()), context, reduce, weight, scope)

    def bins(
        self,
        name: str,
        values: torch.Tensor,
        context: dict[str, str] | None = None,
        *,
        binning: Binning | None = None,
        every: int | None = None,
        scope: Scope = "global",
    ) -> None:
        """Count a population into the histogram of the current window.

        Args:
            name: Name of the series.
            values: The population: any shape and stride, float16, bfloat16, float32, float64, bool or an integer
                dtype, on the device of the buffers. An empty tensor gives an empty histogram. Of a ``DTensor`` the
                local shard is counted, without communication, and what its mesh replicates on one rank only. A plain
                tensor counts on every rank that logs it.
            context: Tags for this population alone; merged with the persistent context, over which they win.
            binning: How to bin it; a series has one binning. By default the one of the configuration.
            every: Count on steps divisible by this only; the others skip the work on the device. By default the one of
                the configuration.
            scope: ``"global"`` counts the values of all ranks together; ``"rank"`` keeps a series for each rank, with
                the context ``rank=<r>``.

        Raises:
            TrackerTypeError: If it is not a tensor, or one that cannot be binned (complex, quantized, sparse, partial).
            TrackerValueError: If it lies on another device, ``every`` is not positive, the name is empty, the binning
                is not that of the series, the slots ran out, or the run is closed.
        """
        self._count([name], [values], context, binning, every, scope)

    def bins_many(
        self,
        values: Mapping[str, torch.Tensor],
        context: dict[str, str] | None = None,
        *,
        binning: Binning | None = None,
        every: int | None = None,
        scope: Scope = "global",
    ) -> None:
        """Count many populations with one kernel launch per dtype: the gradients of a model, for example.

        Args:
            values: Name and population of each series; see ``bins``.
            context: Tags for these populations alone; merged with the persistent context, over which they win.
            binning: How to bin all of them; see ``bins``.
            every: Count on steps divisible by this only; see ``bins``.
            scope: See ``bins``.

        Raises:
            TrackerTypeError: See ``bins``; none of the populations is counted then.
            TrackerValueError: See ``bins``; none of the populations is counted then.
        """
        check_mapping("bins_many", values)
        self._count(list(values.keys()), list(values.values()), context, binning, every, scope)

    def watch(
        self,
        module: nn.Module,
        *,
        gradients: bool = True,
        parameters: bool = False,
        activations: bool = False,
        every: int | None = None,
        binning: Binning | None = None,
    ) -> Watch:
        """Log histograms of a module's gradients, parameters or activations from now on, until the run ends.

        Args:
            module: What to watch.
            gradients: Log ``gradients/<parameter>`` whenever an optimizer steps.
            parameters: Log ``parameters/<parameter>`` whenever an optimizer steps, before it does.
            activations: Log ``activations/<module>``, the output of every leaf module, whenever it runs. Of several
                outputs, the first. Code that was compiled before knows nothing of it.
            every: Count on steps divisible by this only. By default the one of the configuration.
            binning: How to bin. By default the one of the configuration.

        Returns:
            The watch, to end it with ``remove``.

        Raises:
            TrackerTypeError: If the module or the binning is none.
            TrackerValueError: If the run is closed, the cadence is no positive int, there is nothing to log, or one of
                the series is watched already.
        """
        self._refuse_if_closed("watch")
        watch = Watch(
            self,
            module,
            gradients=gradients,
            parameters=parameters,
            activations=activations,
            every=every,
            binning=binning,
        )
        self.watches.append(watch)
        return watch

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
        self._delivery.flush(self.config.flush_timeout)

    def attach(self, collector: Collector, delivery: AnyDelivery, rank: int) -> None:
        """Open the run: what is logged goes to a backend from now on.

        Args:
            collector: Takes the windows.
            delivery: Takes the records of the windows.
            rank: This process among those that share the run.
        """
        self._collector, self._delivery, self._rank = collector, delivery, str(rank)
        self._context = ()
        self._stepped = self.buffers.step > 0
        self.is_open = True

    def detach(self) -> bool:
        """Close the run: send the partial window, deliver what can be delivered in time, and end the threads.

        Returns:
            Whether the backend let go of its thread.
        """
        assert self._collector is not None
        assert self._delivery is not None
        while self.watches:
            self.watches.pop().remove()
        try:
            self._send_rest()
            if self._collector.has_merged and not self._stepped:
                logger.warning("set_step was never called, so all of the run is at step 0; call it at every step")
        finally:
            self.is_open = False
            self._collector.close()
            ended = self._delivery.close(self.config.flush_timeout)
        return ended

    def _send_rest(self) -> None:
        assert self._collector is not None
        self.buffers.close_window()
        self._collector.drain()

    def _open_collector(self) -> Collector:
        assert self._collector is not None
        return self._collector

    def _merge(
        self,
        names: list[str],
        values: list[Any],
        context: dict[str, str] | None,
        reduce: Reduction,
        weight: Number | None,
        scope: Scope,
    ) -> None:
        if torch.compiler.is_compiling():
            begin_inputs()
            for value in (*values, weight):
                isinstance(value, torch.Tensor)
            end_inputs()
        check_names(names)
        if not names or self._is_repeated(names[0]):
            return
        items = self._merged(names[0], context, scope)
        if weight is not None and reduce != "mean":
            fail(TrackerValueError, f"{label(names[0], items)}: a weight has no meaning with reduce={reduce!r}")
        device = self.buffers.device
        numbers = [check_number(name, items, value, device) for name, value in zip(names, values, strict=True)]
        factor = None if weight is None else check_number(f"{names[0]} (weight)", items, weight, device)
        slots = [scalar_slot(self._token, self.is_open, name, items, reduce) for name in names]
        if torch.compiler.is_compiling() and is_backward_traced():
            self.buffers.scalars.write_in_backward(self._token, slots, numbers, reduce, factor)
        else:
            self.buffers.scalars.write(slots, numbers, reduce, factor)

    def _count(
        self,
        names: list[str],
        values: list[torch.Tensor],
        context: dict[str, str] | None,
        binning: Binning | None,
        every: int | None,
        scope: Scope,
    ) -> None:
        check_names(names)
        if not names or self._is_repeated(names[0]):
            return
        items = self._merged(names[0], context, scope)
        device = self.buffers.device
        populations: list[torch.Tensor] = []
        rows: list[int] = []
        parameters: list[Any] = []
        for name, value in zip(names, values, strict=True):
            population, counts = check_population(name, items, value, device)
            row, *parameters = histogram_slot(self._token, self.is_open, name, items, binning, every)
            if counts:
                # In inference mode, compiled code cannot view what was made outside, not even to detach it.
                populations.append(population.detach() if torch.is_grad_enabled() else population)
                rows.append(row)
        if not rows:
            return
        if torch.compiler.is_compiling() and is_backward_traced():
            torch.ops.d9d_tracker.histogram_in_backward(self._token, populations, rows, *parameters)
        else:
            self.buffers.count(populations, rows, *parameters)

    def _is_repeated(self, name: str) -> bool:
        if torch.compiler.is_compiling():
            check_traced_place(name)
            return False
        check_place(name)
        return is_recomputing()

    def _merged(self, name: str, context: dict[str, str] | None, scope: Scope) -> ContextItems:
        if context is None and scope == "global":
            return self._context
        merged = dict(self._context)
        if context is not None:
            check_context(name, context)
            merged.update(context)
        if scope == "rank":
            merged["rank"] = self._rank
        elif scope != "global":
            fail(TrackerValueError, f"series {name!r}: scope={scope!r} is neither 'global' nor 'rank'")
        return tuple(sorted(merged.items()))

    def _refuse_inside_graphs(self, method: str) -> None:
        if torch.compiler.is_compiling():
            fail(TrackerValueError, f"{method} was called inside compiled code; call it on the host, between steps")
        if self.buffers.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise TrackerValueError(
                f"{method} was called while a CUDA graph is captured, which would not repeat it on replay; call it "
                "between replays"
            )

    def _refuse_if_closed(self, method: str) -> None:
        if not self.is_open:
            raise TrackerValueError(f"{method}: {CLOSED}")
