"""The run a training loop logs to: values merge into device buffers, also under torch.compile and CUDA graphs."""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from typing_extensions import override

from d9d_tracker.base import BaseTrackerRun
from d9d_tracker.config import AccumulatorConfig, Binning
from d9d_tracker.errors import TrackerTypeError, TrackerValueError, fail
from d9d_tracker.tracing import begin_inputs, end_inputs, is_backward_traced, is_producing_a_program

from .arguments import Number, check_context, check_counts, check_mapping, check_names, check_number, check_population
from .buffers import Buffers
from .effects import add_counts_with_effect, histogram_with_effect, merge_scalars_with_effect
from .handles import AccumulatingBinsHandle, AccumulatingScalarHandle
from .placement import norm_of
from .recompute import check_place, check_traced_place, is_recomputing, is_refused_place
from .regions import has_effect_here
from .registry import ContextItems, Reduction, label
from .runs import runs
from .session import Session
from .slots import (
    counts_place,
    histogram_place,
    histogram_series,
    integer_binning,
    say_closed,
    scalar_place,
    scalar_series,
)
from .watch import Watch

Scope = Literal["global", "rank", "spread"]

logger = logging.getLogger("d9d_tracker")

_tokens = itertools.count()
_WHAT_A_HANDLE_LOGS = "what a handle logs"


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
        self._tags: dict[str, str] = {}  # of `context` blocks in compiled code
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
        """Replace the persistent context, on the host; also for compiled code and CUDA graphs, which stay as they are.

        Never waits for the device. Of a series in compiled code, the device is told its slot in the new context.

        Args:
            context: Tag names and values, attached to all following values.

        Raises:
            TrackerTypeError: If it is not a ``dict[str, str]``.
            TrackerValueError: If it is called in compiled code (where ``with run.context(...)`` does it), or while a
                CUDA graph is captured.
        """
        self._refuse_inside_graphs("set_context")
        check_context("set_context", context)
        items = tuple(sorted(context.items()))
        if items != self._context:
            self._context = items
            if self.is_open:
                self.buffers.places.refill(items)

    @override
    def get_context(self) -> dict[str, str]:
        return dict(self._context)

    @override
    @contextmanager
    def context(self, **tags: str) -> Iterator[None]:
        if not torch.compiler.is_compiling():
            with super().context(**tags):
                yield
            return
        # In compiled code, the tags are a part of each call.
        check_context("context", tags)
        before = self._tags
        self._tags = {**before, **tags}
        try:
            yield
        finally:
            self._tags = before

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
                name is empty, or the reduction is not that of the series.
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
                is not that of the series.
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
                the name is empty, or the series has another ``n``.
        """
        check_names([name])
        if self._is_silent(name) or self._is_repeated(name):
            return
        items = self._items(name, context, scope)
        vector, counts = check_counts(name, items, values, self.buffers.device)
        bins = int(vector.shape[0])
        if self._holds_places():
            at, cadence = counts_place(self._token, name, items, bins, every)
        else:
            binning = integer_binning(name, items, bins)
            series, cadence = histogram_series(self.config, name, items, binning, every)
            at = self.buffers.histogram_series.slot(series)
        if not counts or at < 0:
            return
        if torch.compiler.is_compiling() and is_backward_traced():
            add_counts_with_effect(self._token, vector, at, cadence)
        elif self._holds_places():
            self.buffers.add_counts(vector, at, cadence, self.buffers.places.table)
        else:
            with self.buffers.lock:
                self.buffers.add_counts(vector, at, cadence)

    @override
    def scalar_series(
        self,
        name: str,
        context: dict[str, str] | None = None,
        *,
        reduce: Reduction = "mean",
        scope: Scope = "global",
    ) -> AccumulatingScalarHandle:
        """Return a handle of a scalar series, for a module to hold: ``handle.scalar(value)`` in place of ``scalar``.

        Blocks of one class that are compiled one by one share their code if each logs to its own handle, where names
        would be constants of the code. Make it outside of compiled code. It is good for the life of the tracker.

        Args:
            name: Name of the series.
            context: Tags of the series; merged with the persistent context, over which they win.
            reduce: See ``scalar``.
            scope: See ``scalar``.

        Raises:
            TrackerTypeError: If the name or the context is none.
            TrackerValueError: If it is called in compiled code, the name is empty, or the series was logged differently
                before.
        """
        self._refuse_inside_graphs("scalar_series")
        check_names([name])
        items = self._items(name, context, scope, handle=True)
        series = scalar_series(name, items, reduce, 1.0, scope == "spread")
        return AccumulatingScalarHandle(self, series, self.buffers.places)

    @override
    def bins_series(
        self,
        name: str,
        context: dict[str, str] | None = None,
        *,
        binning: Binning | None = None,
        every: int | None = None,
        scope: Scope = "global",
    ) -> AccumulatingBinsHandle:
        """Return a handle of a histogram series, for a module to hold: ``handle.bins(values)`` in place of ``bins``.

        Args:
            name: Name of the series.
            context: Tags of the series; merged with the persistent context, over which they win.
            binning: See ``bins``.
            every: See ``bins``.
            scope: See ``bins``.

        Raises:
            TrackerTypeError: If the name, the context or the binning is none.
            TrackerValueError: See ``scalar_series``; or if ``every`` is not positive.
        """
        self._refuse_inside_graphs("bins_series")
        check_names([name])
        self._refuse_spread(name, scope)
        items = self._items(name, context, scope, handle=True)
        series, cadence = histogram_series(self.config, name, items, binning, every)
        return AccumulatingBinsHandle(self, series, cadence, self.buffers.places)

    def merge_at(self, handle: AccumulatingScalarHandle, value: Any, weight: Number | None) -> None:
        """Merge one number into the series of a handle; see ``AccumulatingScalarHandle.scalar``."""
        if torch.compiler.is_compiling():
            begin_inputs()
            for number in (value, weight):
                isinstance(number, torch.Tensor)
            end_inputs()
        if self._is_silent(_WHAT_A_HANDLE_LOGS) or self._is_refused(handle):
            return
        if weight is not None and handle.reduce != "mean":
            fail(TrackerValueError, f"series {handle.name!r}: a weight has no meaning with reduce={handle.reduce!r}")
        device = self.buffers.device
        number = check_number(handle, (), value, device, handle.reduce)
        factor = None if weight is None else check_number(handle, (), weight, device)
        if norm_of(value) != 1.0:
            fail(TrackerValueError, f"series {handle.name!r}: a handle takes no partial norm; log it with run.scalar")
        if self._holds_places():
            self._write([0], [number], handle.reduce, factor, handle.table)
        elif (slot := self.buffers.places.slot(handle.place)) >= 0:
            with self.buffers.lock:
                self.buffers.scalars.write([slot], [number], handle.reduce, factor)

    def count_at(self, handle: AccumulatingBinsHandle, values: Any) -> None:
        """Count a population into the series of a handle; see ``AccumulatingBinsHandle.bins``."""
        if self._is_silent(_WHAT_A_HANDLE_LOGS) or self._is_refused(handle):
            return
        population, counts = check_population(handle, (), values, self.buffers.device)
        if not counts:
            return
        population = population.detach() if torch.is_grad_enabled() else population
        if self._holds_places():
            self._count_at([population], [0], handle.parameters, handle.table)
        elif (slot := self.buffers.places.slot(handle.place)) >= 0:
            with self.buffers.lock:
                self.buffers.count([population], [slot], *handle.parameters)

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
                outputs, the first. All compiled code is compiled once more then, to know of it.
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
        self._context, self._tags = (), {}
        self.buffers.places.refill(())
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
        items = self._items(names[0], context, scope)
        if weight is not None and reduce != "mean":
            fail(TrackerValueError, f"{label(names[0], items)}: a weight has no meaning with reduce={reduce!r}")
        device = self.buffers.device
        numbers = [check_number(name, items, value, device, reduce) for name, value in zip(names, values, strict=True)]
        factor = None if weight is None else check_number(f"{names[0]} (weight)", items, weight, device)
        roots = [norm_of(value) for value in values]
        spread = scope == "spread"
        holds_places, token = self._holds_places(), self._token
        if holds_places:
            at = [scalar_place(token, n, items, reduce, r, spread) for n, r in zip(names, roots, strict=True)]
        else:
            registry = self.buffers.scalar_series
            named = zip(names, roots, strict=True)
            at = [registry.slot(scalar_series(name, items, reduce, root, spread)) for name, root in named]
        if -1 in at:  # none was left
            numbers = [number for number, one in zip(numbers, at, strict=True) if one >= 0]
            at = [one for one in at if one >= 0]
        if not at:
            return
        if holds_places:
            self._write(at, numbers, reduce, factor, None)
        else:
            with self.buffers.lock:
                self.buffers.scalars.write(at, numbers, reduce, factor)

    def _write(
        self,
        at: list[int],
        numbers: list[Number],
        reduce: Reduction,
        weight: Number | None,
        places: torch.Tensor | None,
    ) -> None:
        """Merge numbers in compiled or captured code; ``places`` is a handle's."""
        buffers = self.buffers
        if torch.compiler.is_compiling() and (is_backward_traced() or has_effect_here(places is not None)):
            arguments = buffers.scalars.effect_arguments(at, numbers, reduce, weight)
            merge_scalars_with_effect(self._token, places, *arguments)
        else:
            table = buffers.places.table if places is None else places
            buffers.scalars.write(at, numbers, reduce, weight, table)

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
        self._refuse_spread(names[0], scope)
        items = self._items(names[0], context, scope)
        device = self.buffers.device
        holds_places = self._holds_places()
        populations: list[torch.Tensor] = []
        at: list[int] = []
        parameters: list[Any] = []
        for name, value in zip(names, values, strict=True):
            population, counts = check_population(name, items, value, device)
            if holds_places:
                place, *parameters = histogram_place(self._token, name, items, binning, every)
            else:
                series, cadence = histogram_series(self.config, name, items, binning, every)
                place, parameters = self.buffers.histogram_series.slot(series), [cadence, *series.binning.parameters()]
            if counts and place >= 0:
                # In inference mode, compiled code cannot view what was made outside, not even to detach it.
                populations.append(population.detach() if torch.is_grad_enabled() else population)
                at.append(place)
        if not at:
            return
        if holds_places:
            self._count_at(populations, at, parameters, None)
        else:
            with self.buffers.lock:
                self.buffers.count(populations, at, *parameters)

    def _count_at(
        self, populations: list[torch.Tensor], at: list[int], parameters: Sequence[Any], places: torch.Tensor | None
    ) -> None:
        """Count populations in compiled or captured code; ``places`` is a handle's."""
        if torch.compiler.is_compiling() and (is_backward_traced() or has_effect_here(places is not None)):
            histogram_with_effect(self._token, places, populations, at, *parameters)
        else:
            table = self.buffers.places.table if places is None else places
            self.buffers.count(populations, at, *parameters, places=table)

    def _holds_places(self) -> bool:
        """Whether what is called now will run again without Python, under a context that is not known yet."""
        if torch.compiler.is_compiling():
            return True
        return self.buffers.device.type == "cuda" and torch.cuda.is_current_stream_capturing()

    def _is_silent(self, what: str) -> bool:
        """Whether nothing is to be logged: the run is closed, or a program is made that others will run."""
        if is_producing_a_program():
            return True
        if not self.is_open:
            say_closed(self._token, what)
        return not self.is_open

    def _is_repeated(self, name: str) -> bool:
        if torch.compiler.is_compiling():
            check_traced_place(name)
            return False
        check_place(name)
        return is_recomputing()

    def _is_refused(self, handle: Any) -> bool:
        """Whether what a handle logs is logged again. Under trace, its name is read only to refuse it."""
        if not torch.compiler.is_compiling():
            return self._is_repeated(handle.name)
        if is_refused_place():
            check_traced_place(handle.name)
        return False

    def _refuse_spread(self, name: str, scope: Scope) -> None:
        if scope == "spread":
            fail(TrackerValueError, f"series {name!r}: scope='spread' is of scalars; use 'global' or 'rank'")

    def _items(self, name: str, context: dict[str, str] | None, scope: Scope, handle: bool = False) -> ContextItems:
        """The context of a call, without the persistent one where a place is held: that is data there."""
        persistent = () if handle or self._holds_places() else self._context
        tags = self._tags
        if context is None and scope in ("global", "spread") and not tags:
            return persistent
        merged = {**dict(persistent), **tags}
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
