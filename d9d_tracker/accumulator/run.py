"""The run a training loop logs to: values merge into device buffers, also under torch.compile and CUDA graphs."""

import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import nn
from torch.compiler import is_compiling
from typing_extensions import override

from d9d_tracker.bank.buffers import Buffers
from d9d_tracker.calls.arguments import check_mapping, check_names, check_number
from d9d_tracker.calls.histogram_calls import AccumulatingBinsHandle, HistogramCalls
from d9d_tracker.calls.panel_calls import PanelCalls
from d9d_tracker.calls.scalar_calls import AccumulatingScalarHandle, ScalarCalls
from d9d_tracker.config import AccumulatorConfig, Binning
from d9d_tracker.context import Contexts, as_context, as_items
from d9d_tracker.errors import TrackerTypeError, TrackerValueError
from d9d_tracker.hparams import plain_hparams
from d9d_tracker.log import logger
from d9d_tracker.pipeline.pipeline import Pipeline
from d9d_tracker.record import Histogram, Record
from d9d_tracker.steps import as_step
from d9d_tracker.tracing import run_as_it_is
from d9d_tracker.watch.norm_series import Group
from d9d_tracker.watch.settings import Settings
from d9d_tracker.watch.watch import Watch
from d9d_tracker.writer.portable import obstacle


class AccumulatingRun(ScalarCalls, HistogramCalls, PanelCalls):
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
        super().__init__(buffers, config)
        self._pipeline: Pipeline | None = None
        self._goes_on = self._has_said_ahead = False
        self.watches: list[Watch] = []

    def set_step(self, step: int) -> None:
        """Begin a step, on the host, between steps. Never waits for the device or the backend.

        On a GPU it works on the caller's current stream: be on the one that logs, or have that one waited for.

        Args:
            step: Index of the step: not negative, never smaller than the one before. The same step again goes on.

        Raises:
            TrackerTypeError: If it is neither an int nor a NumPy integer.
            TrackerValueError: If it goes backwards or does not fit into int64, the run is closed, or a CUDA graph is
                being captured.
        """
        # Few frames and few lines: between two steps of training, each of them is fetched from far.
        buffers, pipeline = self.buffers, self._pipeline
        if is_compiling() or buffers.is_gpu:
            self._refuse_inside_graphs("set_step")
        if not self.is_open or pipeline is None:
            pipeline = self._open_pipeline("set_step")
        if type(step) is not int:
            step = as_step("set_step", step)
        current = buffers.now[0]
        if not current <= step < 2**63:
            as_step("set_step", step)
            raise TrackerValueError(
                f"set_step({step}): the run is at step {current} and steps never go back; to repeat steps, "
                "resume from a checkpoint of that step or open another run"
            )
        self.stepping_thread = get_ident()
        if self._steps is not None:
            self._steps.pass_to(step > current)
        if step > current and buffers.advance(step):
            pipeline.send()

    def set_context(self, context: dict[str, str]) -> None:
        """Replace the persistent context, on the host; also for compiled code and CUDA graphs, which stay as they are.

        Never waits for the device. Of a series in compiled code, the device is told its slot in the new context.

        Args:
            context: Tag names and values, attached to all following values.

        Raises:
            TrackerTypeError: If it is not a dict of text; numbers become text.
            TrackerValueError: If it is called in compiled code (where ``with run.context(...)`` does it), or while a
                CUDA graph is captured.
        """
        self._refuse_inside_graphs("set_context")
        self._contexts.set(as_items(as_context("set_context", context)))
        self._tell_context()

    @override
    def get_context(self) -> dict[str, str]:
        return dict(self._contexts.get())

    @override
    @contextmanager
    def context(self, **tags: str) -> Iterator[None]:
        """Add tags within a block: to what is logged there by the same task and thread, and by compiled code.

        The tags of compiled code are those of the thread that calls ``set_step``.

        Args:
            **tags: Tag names and values, for example ``stage="eval"``.
        """
        if not self.holds_places():
            try:
                with self._contexts.block(as_context("context", tags)):
                    self._tell_context()
                    yield
            finally:
                self._tell_context()
            return
        # In compiled and captured code, the tags are a part of each call.
        before = self._tags
        self._tags = {**before, **as_context("context", tags)}
        try:
            yield
        finally:
            self._tags = before

    @override
    def add_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Add hyperparameters to those that the run was opened with: what rank 0 adds, as far as the backend can.

        They travel with the window that is open, as what ``log_at`` is given.

        Args:
            hparams: Hyperparameters, nested as deep as you like.

        Raises:
            TrackerValueError: If the run is closed.
        """
        self._open_pipeline("add_hparams")
        self.buffers.add_late([], plain_hparams(dict(hparams)))

    def backend(self, action: Callable[..., Any], name: str | None = None, **arguments: Any) -> dict[str, Future[Any]]:
        """Have the backend do what is not wrapped here: a table or an image, for example. Does not wait.

        It is done where the backend is, behind the windows that were complete before. To a process of its own the
        function goes by its name, and the arguments and what it returns as JSON: numbers, text, lists, a file's path.

        Args:
            action: A function of a module. Gets the backend's run, whose ``sdk`` is the object of its SDK.
            name: Which of several backends; all of them if None.
            **arguments: What the action gets besides.

        Returns:
            What it returned or raised, as a future, by the name of the backend; empty on ranks that do not write.
            ``flush`` waits for it, and a state holds nothing of it. A future may be cancelled; of a thousand that wait,
            old ones are.

        Raises:
            TrackerTypeError: If it cannot be sent and ``accumulator.writer`` is ``"process"``. With ``"auto"``, the
                backend then goes on on a thread of the training, which is said.
            TrackerValueError: If the run is closed, or none of its backends has that name.
        """
        pipeline = self._open_pipeline("backend")
        if self.config.writer == "process" and (why := obstacle(action, arguments)):
            raise TrackerTypeError(f"backend: {why}; or set accumulator.writer to 'auto' or 'thread'")
        return pipeline.call(name, action, arguments)

    def log_at(
        self,
        step: int,
        values: Mapping[str, float | torch.Tensor | Histogram],
        context: Mapping[str, Any] | None = None,
    ) -> None:
        """Log what is finished, of a step that may be over: at an epoch, or when an evaluation comes late.

        They travel with the window that is open, and are in its state. At one step the last of them stands, also in
        place of what was accumulated there for the same series; of several ranks, what the lowest logs. A
        backend that takes nothing for a step that it was given before (W&B) refuses them, which is counted.

        Args:
            step: The step. What is logged at one that has not begun waits for it, in the state, or for the end.
            values: Name and value of each series, numbers and histograms; a tensor on a GPU is waited for.
            context: Tags; merged with the persistent context, over which they win.

        Raises:
            TrackerTypeError: If a value is neither, or the step no int.
            TrackerValueError: If a value has not one element, a name is empty, the step does not fit into int64, or it
                is called in compiled code.
        """
        self._refuse_inside_graphs("log_at")
        step = as_step("log_at", step)
        check_mapping("log_at", values)
        check_names(list(values))
        if self._is_silent("log_at"):
            return
        if step > self.buffers.now[0] and self.stepping_thread is None and not self._has_said_ahead:
            self._has_said_ahead = True
            logger.warning("log_at(%d): such values wait for their step, or the end of the run; call set_step", step)
        tags = {**dict(self._contexts.get()), **as_context("log_at", {} if context is None else dict(context))}
        now = time.time()

        def finished(name: str, value: Any) -> Record:
            if not isinstance(value, Histogram):
                number = check_number(name, (), value, self.buffers.device)
                value = float(number.item() if isinstance(number, torch.Tensor) else number)
            return Record(name, step, tags, value, now)

        self.buffers.add_late([finished(name, value) for name, value in values.items()], {})

    def watch(
        self,
        module: nn.Module,
        *,
        gradients: bool = True,
        parameters: bool = False,
        activations: bool = False,
        evaluation: bool = False,
        norms: bool = False,
        updates: bool = False,
        p: float = 2.0,
        group: Group | None = None,
        prefix: str | None = None,
        every: int | None = None,
        binning: Binning | None = None,
    ) -> Watch:
        """Log a module's gradients, parameters or activations from now on, until the run ends: histograms, and norms.

        Args:
            module: What to watch.
            gradients: Log histograms ``gradients/<parameter>`` whenever an optimizer steps.
            parameters: Log histograms ``parameters/<parameter>`` whenever an optimizer steps, before it does.
            activations: Log histograms ``activations/<module>``, of the output of every layer, whenever it runs in
                training mode. All compiled code is compiled once more then, to know of it.
            evaluation: Count activations in evaluation mode too, with the context ``mode=eval``.
            norms: Log scalars ``norms/gradients/<parameter>`` and ``norms/parameters/<parameter>`` whenever an
                optimizer steps, before it does, and those of all together, ``norms/gradients``, ``norms/parameters``.
            updates: Log ``norms/updates/<parameter>``, what a step has added to it, and ``norms/ratios/<parameter>``,
                that by the parameter's norm before; and those of all. Takes a copy of the parameters in such a step.
            p: Which norm, a number above 0 or ``math.inf``.
            group: Norms of groups in the place of those of parameters: ``"block"``, by the repeated blocks of a model;
                a depth, by the first so many parts of a name; or a function from names of parameters to groups.
            prefix: Goes before all names, as in ``actor/gradients/...``: for a second model of the same shape.
            every: Count every so many steps of an optimizer, or forwards of a layer; in compiled and captured code, on
                steps of the run that are divisible by it. By default the cadence of the configuration.
            binning: How to bin. By default the one of the configuration.

        Returns:
            The watch, to end it with ``remove``.

        Raises:
            TrackerTypeError: If the module, the prefix, the group or the binning is none.
            TrackerValueError: If the run is closed, the cadence is no positive int, there is nothing to log, there are
                too few slots, or one of the series is watched already, of other tensors. A watch of the same ones,
                or of a model that is gone, ends instead.
        """
        self._open_pipeline("watch")
        settings = Settings(
            gradients, parameters, activations, evaluation, norms, updates, p, group, prefix, every, binning
        )
        return Watch(self, self.watches, module, settings)

    def flush(self) -> None:
        """Block until everything logged so far, the current step included, is with the backend.

        Waits ``flush_timeout`` seconds at most; what the backend has not accepted by then is reported and stays queued.
        A backend that cannot amend a step gets the current one when it has ended.

        Raises:
            TrackerValueError: If the run is closed or a CUDA graph is being captured.
        """
        self._refuse_inside_graphs("flush")
        self._open_pipeline("flush").flush()

    def attach(self, pipeline: Pipeline, end: Callable[[BaseException | None], None], ranks: int) -> None:
        """Open the run: what is logged goes to a pipeline from now on.

        Args:
            pipeline: Takes the windows.
            end: Closes the run.
            ranks: How many processes share it.
        """
        assembly = pipeline.assembly
        self._pipeline, self._rank, self.promises = pipeline, str(assembly.rank), assembly.promises
        self._contexts, self._tags = Contexts(), {}
        self.forget_panel(ranks)
        self.buffers.places.refill(())
        self._goes_on, self.stepping_thread = self.buffers.clock.step > 0, None
        self._has_said_ahead = False
        self._leave = lambda kind, error, traceback: end(error)
        self.key[0].opened()
        self.is_open = True

    def stop_taking(self) -> None:
        """Take nothing more: what other threads log from now on goes nowhere."""
        self.is_open = False

    def detach(self) -> None:
        """Forget the session: the run is closed."""
        self.is_open, self._pipeline, self._leave = False, None, None

    def end_watches(self) -> None:
        """Remove the hooks of everything that is watched."""
        while self.watches:
            self.watches.pop().close()

    def warn_of_no_steps(self, has_merged: bool) -> None:
        """Warn if ``set_step`` was forgotten.

        Args:
            has_merged: Whether some point is made of several values.
        """
        if has_merged and self.stepping_thread is None and not self._goes_on:
            logger.warning("set_step was never called, so all of the run is at step 0; call it at every step")

    def _tell_context(self) -> None:
        """Have compiled code log under the context that holds here, if this is the thread that it runs in."""
        context, places = self._contexts.get(), self.buffers.places
        if self.is_open and context != places.context and self.stepping_thread in (None, get_ident()):
            self.buffers.follow()
            places.refill(context)

    def _open_pipeline(self, method: str) -> Pipeline:
        if not self.is_open or self._pipeline is None:
            raise TrackerValueError(
                f"{method}: the run is closed; call it inside `with tracker.open(...) as run`, and not in a forked "
                "process"
            )
        return self._pipeline


for _kind in (AccumulatingRun, AccumulatingScalarHandle, AccumulatingBinsHandle):
    run_as_it_is(*(method for name, method in inspect.getmembers(_kind, inspect.isfunction) if name[0] != "_"))
