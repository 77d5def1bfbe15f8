"""The run a training loop logs to: values merge into device buffers, also under torch.compile and CUDA graphs."""

import itertools
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Literal

import torch
from torch import nn
from typing_extensions import override

from d9d_tracker.base import BaseTrackerRun
from d9d_tracker.config import AccumulatorConfig, Binning
from d9d_tracker.errors import TrackerTypeError, TrackerValueError, fail

from .arguments import Number, check_context, check_counts, check_mapping, check_names, check_number, check_population
from .backward import is_backward_traced
from .buffers import Buffers
from .inputs import begin_inputs, end_inputs
from .placement import norm_of
from .recompute import check_place, check_traced_place, is_recomputing
from .registry import ContextItems, Reduction, label
from .runs import runs
from .session import Session
from .slots import counts_slot, histogram_slot, say_closed, scalar_slot
from .watch import Watch

Scope = Literal["global", "rank", "spread"]

logger = logging.getLogger("d9d_tracker")

_tokens = itertools.count()


def _report_hparams(future: Future[Any]) -> None:
    if future.cancelled() or future.exception() is not None:
        cause = "the run closed before" if future.cancelled() else repr(future.exception())
        logger.warning("hyperparameters that were added later did not reach the backend: %s", cause)


class AccumulatingRun(BaseTrackerRun):
    """Accumulates what is logged on the device and sends it to a backend once per window.

    A tracker has one such object and opens it again for each of its runs, so that compiled code that refers to it
    needs no recompilation. While none of them is open, logging does nothing: a model that logs can still serve.

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
        self._session: Session | None = None
        self._rank = "0"
        self._stepped = False
        self.watches: list[Watch] = []

    def set_step(self, step: int) -> None:
        """Begin a step, on the host, between steps. Never waits for the device or the backend.

        On a GPU it works on the caller's current stream: be on the one that logs, or have that one waited for.

        Args:
            step: Index of the step: not negative, never smaller than the one before. The same step again goes on.

        Raises:
            TrackerTypeError: If it is not an int.
            TrackerValueError: If it goes backwards or does not fit into int64, the run is closed, or a CUDA graph is
                being captured.
        """
        self._refuse_inside_graphs("set_step")
        session = self._open_session("set_step")
        if isinstance(step, bool) or not isinstance(step, int):
            raise TrackerTypeError(f"set_step({step!r}): a step is an int, not {type(step).__name__}; pass int(step)")
        if not 0 <= step < 2**63:
            raise TrackerValueError(f"set_step({step}): a step is between 0 and 2**63 - 1; count steps from the start")
        self._stepped = True
        current = self.buffers.clock.step
        if step < current:
            raise TrackerValueError(
                f"set_step({step}): the run is at step {current} and steps never go back; to repeat steps, "
                "resume from a checkpoint of that step or open another run"
            )
        if step > current:
            with self.buffers.lock:
                completed = self.buffers.advance(step)
            if completed:
                session.send()

    def set_context(self, context: dict[str, str]) -> None:
        """Replace the persistent context.

        Args:
            context: Tag names and values, attached to all following values.

        Raises:
            TrackerTypeError: If it is not a ``dict[str, str]``.
        """
        check_context("set_context", context)
        self._context = tuple(sorted(context.items()))

    @override
    def get_context(self) -> dict[str, str]:
        return dict(self._context)

    @override
    def add_hparams(self, hparams: Mapping[str, Any]) -> None:
        for future in self.backend(lambda run: run.add_hparams(hparams)).values():
            future.add_done_callback(_report_hparams)

    def backend(self, action: Callable[[BaseTrackerRun], Any], name: str | None = None) -> dict[str, Future[Any]]:
        """Have the backend do what is not wrapped here: a table or an image, for example. Does not wait.

        Args:
            action: Gets the backend's run, between two windows, on the thread that owns it.
            name: Which of several backends; all of them if None.

        Returns:
            What it returned or raised, as a future, by the name of the backend; empty on ranks that do not write.

        Raises:
            TrackerValueError: If the run is closed.
        """
        return self._open_session("backend").call(name, action)

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
                ``DTensor`` is replicated, every rank's copy counting, or partial (sum, avg, a norm; min and max in a
                series of that reduction): then the ranks' parts become the whole when their windows meet. Compiled
                code copies a tensor on the CPU to the device without a wait; in pinned memory it must therefore keep
                its value for the step.
            context: Tags for this value alone; merged with the persistent context, over which they win.
            reduce: How several values of one step combine; a series has one reduction.
            weight: Weight in a mean, a number or a tensor of one element: the number of tokens, for example.
            scope: ``"global"`` combines the values of all ranks, ``last`` being that of the highest rank with a value
                in the step; ``"rank"`` keeps a series for each rank, with the context ``rank=<r>``; ``"spread"`` gives
                four for any number of ranks: ``<name>/min``, ``/mean``, ``/max`` and ``/max_rank``.

        Raises:
            TrackerTypeError: If the value is neither a real number nor a real tensor.
            TrackerValueError: If the tensor has not exactly one element, lies on a device other than the buffers', the
                name is empty, the reduction is not that of the series, or the slots ran out.
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
                is not that of the series, or the slots ran out.
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

    def counts(
        self,
        name: str,
        values: torch.Tensor,
        context: dict[str, str] | None = None,
        *,
        every: int | None = None,
        scope: Scope = "global",
    ) -> None:
        """Add counts that are counts already: tokens of each expert, actions, classes.

        The series is a histogram with a bin for each index: what ``bins`` with ``IntegerBinning(n)`` would give for a
        population in which each index ``k`` occurs ``values[k]`` times.

        Args:
            name: Name of the series.
            values: An integer dtype, not negative, of shape ``[n]`` with 1 to 2046 counts, on the device of the
                buffers; ``n`` is that of the series. Of a replicated ``DTensor`` one rank's copy counts.
            context: Tags for these counts alone; merged with the persistent context, over which they win.
            every: See ``bins``.
            scope: See ``bins``.

        Raises:
            TrackerTypeError: If it is no tensor of integers, or split across ranks.
            TrackerValueError: If it is not a vector of 1 to 2046, lies on another device, ``every`` is not positive,
                the name is empty, the series has another ``n``, or the slots ran out.
        """
        check_names([name])
        if self._is_silent(name) or self._is_repeated(name):
            return
        items = self._merged(name, context, scope)
        vector, counts = check_counts(name, items, values, self.buffers.device)
        row, cadence = counts_slot(self._token, name, items, int(vector.shape[0]), every)
        if not counts:
            return
        if torch.compiler.is_compiling() and is_backward_traced():
            torch.ops.d9d_tracker.add_counts_in_backward(self._token, vector, row, cadence)
        elif torch.compiler.is_compiling():
            self.buffers.add_counts(vector, row, cadence)
        else:
            with self.buffers.lock:
                self.buffers.add_counts(vector, row, cadence)

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
        self._open_session("watch")
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
        A backend that cannot amend a step gets the current one when it has ended.

        Raises:
            TrackerValueError: If the run is closed or a CUDA graph is being captured.
        """
        self._refuse_inside_graphs("flush")
        self._open_session("flush").flush()

    def attach(self, session: Session, end: Callable[[BaseException | None], None]) -> None:
        """Open the run: what is logged goes to a session from now on.

        Args:
            session: Takes the windows.
            end: Closes the run.
        """
        self._session, self._rank = session, str(session.rank)
        self._context = ()
        self._stepped = self.buffers.clock.step > 0
        self._leave = lambda kind, error, traceback: end(error)
        self.is_open = True

    def detach(self) -> None:
        """Take nothing more: the run is closed."""
        self.is_open, self._session, self._leave = False, None, None

    def end_watches(self) -> None:
        """Remove the hooks of everything that is watched."""
        while self.watches:
            self.watches.pop().remove()

    def warn_of_no_steps(self, has_merged: bool) -> None:
        """Warn if ``set_step`` was forgotten.

        Args:
            has_merged: Whether some point is made of several values.
        """
        if has_merged and not self._stepped:
            logger.warning("set_step was never called, so all of the run is at step 0; call it at every step")

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
        if not names or self._is_silent(names[0]) or self._is_repeated(names[0]):
            return
        items = self._merged(names[0], context, scope)
        if weight is not None and reduce != "mean":
            fail(TrackerValueError, f"{label(names[0], items)}: a weight has no meaning with reduce={reduce!r}")
        device = self.buffers.device
        numbers = [check_number(name, items, value, device, reduce) for name, value in zip(names, values, strict=True)]
        factor = None if weight is None else check_number(f"{names[0]} (weight)", items, weight, device)
        roots = [norm_of(value) for value in values]
        spread = scope == "spread"
        slots = [
            scalar_slot(self._token, name, items, reduce, root, spread) for name, root in zip(names, roots, strict=True)
        ]
        if torch.compiler.is_compiling() and is_backward_traced():
            self.buffers.scalars.write_in_backward(self._token, slots, numbers, reduce, factor)
        elif torch.compiler.is_compiling():
            self.buffers.scalars.write(slots, numbers, reduce, factor)
        else:
            with self.buffers.lock:
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
        if not names or self._is_silent(names[0]) or self._is_repeated(names[0]):
            return
        if scope == "spread":
            fail(TrackerValueError, f"series {names[0]!r}: scope='spread' is of scalars; use 'global' or 'rank'")
        items = self._merged(names[0], context, scope)
        device = self.buffers.device
        populations: list[torch.Tensor] = []
        rows: list[int] = []
        parameters: list[Any] = []
        for name, value in zip(names, values, strict=True):
            population, counts = check_population(name, items, value, device)
            row, *parameters = histogram_slot(self._token, name, items, binning, every)
            if counts:
                # In inference mode, compiled code cannot view what was made outside, not even to detach it.
                populations.append(population.detach() if torch.is_grad_enabled() else population)
                rows.append(row)
        if not rows:
            return
        if torch.compiler.is_compiling() and is_backward_traced():
            torch.ops.d9d_tracker.histogram_in_backward(self._token, populations, rows, *parameters)
        elif torch.compiler.is_compiling():
            self.buffers.count(populations, rows, *parameters)
        else:
            with self.buffers.lock:
                self.buffers.count(populations, rows, *parameters)

    def _is_silent(self, name: str) -> bool:
        """Whether nothing is to be logged: the run is closed, or a program is made that others will run."""
        if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
            return True
        if not self.is_open:
            say_closed(self._token, name)
        return not self.is_open

    def _is_repeated(self, name: str) -> bool:
        if torch.compiler.is_compiling():
            check_traced_place(name)
            return False
        check_place(name)
        return is_recomputing()

    def _merged(self, name: str, context: dict[str, str] | None, scope: Scope) -> ContextItems:
        if context is None and scope in ("global", "spread"):
            return self._context
        merged = dict(self._context)
        if context is not None:
            check_context(name, context)
            merged.update(context)
        if scope == "rank":
            merged["rank"] = self._rank
        elif scope not in ("global", "spread"):
            fail(TrackerValueError, f"series {name!r}: scope={scope!r} is neither 'global', 'rank' nor 'spread'")
        return tuple(sorted(merged.items()))

    def _refuse_inside_graphs(self, method: str) -> None:
        if torch.compiler.is_compiling():
            fail(TrackerValueError, f"{method} was called inside compiled code; call it on the host, between steps")
        if self.buffers.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise TrackerValueError(
                f"{method} was called while a CUDA graph is captured, which would not repeat it on replay; call it "
                "between replays"
            )

    def _open_session(self, method: str) -> Session:
        if not self.is_open or self._session is None:
            raise TrackerValueError(
                f"{method}: the run is closed; call it inside `with tracker.open(...) as run`, and not in a forked "
                "process"
            )
        return self._session
