"""Histograms of a whole model: gradients and parameters at every optimizer step, activations at every forward."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from d9d_tracker.accumulator.recompute import is_recomputing
from d9d_tracker.accumulator.slots import check_settings
from d9d_tracker.base import BinsHandle
from d9d_tracker.errors import TrackerTypeError, TrackerValueError
from d9d_tracker.tracing import forget_compiled_code, is_in_another_step, is_producing_a_program

from .modules import ParameterNames, layers
from .promises import Promises
from .skipped_steps import register_skipped_step_hook
from .values import named_tensors, numbers

if TYPE_CHECKING:
    from d9d_tracker.accumulator.buffers import Buffers
    from d9d_tracker.config import AccumulatorConfig, Binning

logger = logging.getLogger("d9d_tracker")

_SKIPPED = {"amp": "skipped"}
_EVALUATION = {"mode": "eval"}


class WatchedRun(Protocol):
    """What a watch needs of a run."""

    buffers: Buffers
    config: AccumulatorConfig
    watches: list[Watch]
    promises: Promises

    def holds_places(self) -> bool:
        """See ``AccumulatingRun``."""
        ...

    def bins_series(
        self,
        name: str,
        context: dict[str, str] | None = None,
        *,
        binning: Binning | None = None,
        every: int | None = None,
    ) -> BinsHandle:
        """See ``AccumulatingRun``."""
        ...

    def bins_many(
        self,
        values: Mapping[str, torch.Tensor],
        context: dict[str, str] | None = None,
        *,
        binning: Binning | None = None,
        every: int | None = None,
    ) -> None:
        """See ``AccumulatingRun``."""


class Watch:
    """Hooks that log a module, until ``remove`` or the end of the run.

    Gradients and parameters are counted right before an optimizer steps that holds them: the gradients are then those
    the optimizer uses, accumulated over micro-batches, reduced across ranks and clipped; unscaled too, unless a fused
    optimizer does that itself. With ``optimizer.step(closure)`` they are those of the closure's first evaluation. Those
    of a step that a gradient scaler skips are counted apart, with the context ``amp=skipped``. All of them take one
    kernel launch per dtype. Activations are counted in the forward of every layer, also in compiled code: what was
    compiled before does not look for hooks, so all compiled code is compiled once more.

    Of a sparse gradient its values are counted, for which a GPU has to be waited for; of complex numbers the real and
    the imaginary parts. Names are those of the bare model, whatever is wrapped around it, and are looked up again when
    an optimizer holds a tensor that is not known. A hook never raises: what cannot be counted is said once, and so is
    what has counted nothing by the end of the first full window.

    Args:
        run: Where to log.
        module: What to watch.
        gradients: Log ``gradients/<parameter>``.
        parameters: Log ``parameters/<parameter>``.
        activations: Log ``activations/<module>``: the output of every layer. Further tensors of an output have their
            place, key or field in the name.
        evaluation: Count the activations of modules in evaluation mode too, with the context ``mode=eval``.
        every: Count every so many steps of an optimizer, or forwards of a module. In compiled and captured code, which
            runs without Python, on steps of the run that are divisible by it. By default the run's cadence.
        binning: How to bin; by default the run's binning.

    Attributes:
        series: The names it logs to.

    Raises:
        TrackerTypeError: If the module or the binning is none.
        TrackerValueError: If the cadence is no positive int, there is nothing to log, there are too few slots, or the
            run is closed.
    """

    def __init__(
        self,
        run: WatchedRun,
        module: nn.Module,
        *,
        gradients: bool,
        parameters: bool,
        activations: bool,
        evaluation: bool,
        every: int | None,
        binning: Binning | None,
    ):
        if not isinstance(module, nn.Module):
            raise TrackerTypeError(f"watch takes a torch.nn.Module, not {type(module).__name__}")
        config = run.config
        self.every = config.bins_every if every is None else every
        check_settings("watch", config.binning if binning is None else binning, self.every)
        self._run = run
        self._binning = binning
        self._gradients = gradients
        self._parameters = parameters
        self._names = ParameterNames(module)
        self._steps: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()
        self._stepped = self._met = False
        self.is_live = True
        self._said: set[str] = set()
        self._handles: list[RemovableHandle] = []
        watched = layers(module) if activations else {}
        trained = {self._names.of(parameter): parameter.requires_grad for parameter in module.parameters()}
        self.series = {f"gradients/{name}" for name, is_trained in trained.items() if gradients and is_trained}
        self.series |= {f"parameters/{name}" for name in trained if parameters}
        self.series |= {f"activations/{name}" for name in watched}
        if not self.series:
            raise TrackerValueError(
                f"watch: a {type(module).__name__} has nothing to log with {gradients=}, {parameters=}, {activations=}"
            )
        self._refuse_others()
        self._refuse_too_many()
        if gradients or parameters:
            self._handles.append(register_optimizer_step_pre_hook(self._before_step))
            self._handles.append(register_skipped_step_hook(self._after_skipped_step))
        for name, layer in watched.items():
            handles = [
                run.bins_series(f"activations/{name}", context, binning=binning, every=every)
                for context in (None, *([_EVALUATION] * evaluation))
            ]
            self._handles.append(layer.register_forward_hook(_ForwardHook(self, *handles)))
        if activations:
            forget_compiled_code()
        step = run.buffers.clock.step
        by_optimizer = {name for name in self.series if not name.startswith("activations/")}
        run.promises.add(by_optimizer, step, self.every, self._why_no_gradient)
        run.promises.add(self.series - by_optimizer, step, self.every, lambda: "no forward in training mode reached it")

    def remove(self) -> None:
        """Stop watching."""
        self.is_live = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.series.clear()

    def attempt(self, what: str, log: Callable[..., None], *arguments: Any) -> None:
        """Log from a hook, which must never end the training; say once what could not be.

        Args:
            what: What is logged, in words.
            log: Logs it.
            *arguments: What it takes.
        """
        try:
            log(*arguments)
        except Exception as error:
            if what not in self._said:
                self._said.add(what)
                logger.error("watch: %s cannot be counted, and training goes on: %s", what, error)

    def count_output(self, handle: BinsHandle, output: Any, every: int | None) -> None:
        """Count the output of a module.

        Args:
            handle: Its series.
            output: What its forward returned.
            every: The cadence in steps; that of the handle if None.
        """
        found = {handle.name + rest: numbers(tensor) for rest, tensor in named_tensors(output)}
        if not found:
            raise TrackerTypeError(f"{handle.name!r}: an output of type {type(output).__name__} holds no tensor")
        self._run.bins_many(found, dict(handle.context or {}), binning=self._binning, every=every)

    def holds_places(self) -> bool:
        """See ``AccumulatingRun``."""
        return self._run.holds_places()

    def _refuse_others(self) -> None:
        for other in self._run.watches:
            if common := self.series & other.series:
                raise TrackerValueError(
                    f"watch: {min(common)!r} is watched already, and both would be counted together; watch the module "
                    "that holds both, or remove() the other watch first"
                )

    def _refuse_too_many(self) -> None:
        registry = self._run.buffers.histogram_series
        known = {series.name for series in registry.series}
        needed, free = len(self.series - known), registry.capacity - len(registry.series)
        if needed > free:
            raise TrackerValueError(
                f"watch: {needed} series, and {free} of {registry.capacity} slots are free; set "
                f"accumulator.max_histograms={registry.capacity - free + needed} or more, or watch a part of the module"
            )

    def _why_no_gradient(self) -> str:
        if not self._stepped:
            return "no optimizer has stepped"
        if not self._met:
            return (
                "the optimizers that stepped hold other tensors than the module's parameters, copies in float32 for "
                "example; watch the module that they are of, or log them with run.bins_many"
            )
        return "no gradient reached it, or no optimizer that stepped holds it"

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Count what the optimizer is about to use: now, or once its closure has computed it for the first time."""
        if not self.is_live or is_producing_a_program():
            return None
        every = self.every
        if not torch.compiler.is_compiling() and not self._run.holds_places():
            if is_in_another_step():
                return None
            self._stepped = True
            done = self._steps.get(optimizer, 0)
            self._steps[optimizer] = done + 1
            if done % every:
                return None
            every = 1
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self.attempt("an optimizer's step", self._count, optimizer, every, None)
            return None
        is_first = True

        def counted() -> Any:
            nonlocal is_first
            loss = closure()
            if is_first:
                is_first = False
                self.attempt("an optimizer's step", self._count, optimizer, every, None)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": counted}
        return (args[0], counted, *args[2:]), kwargs

    def _after_skipped_step(self, optimizer: Optimizer) -> None:
        if self.is_live:
            self.attempt("a skipped step", self._count, optimizer, 1, _SKIPPED)

    def _count(self, optimizer: Optimizer, every: int, context: dict[str, str] | None) -> None:
        populations: dict[str, torch.Tensor] = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = self._names.of(parameter)
                if name is None:
                    continue
                self._met = True
                if self._gradients and parameter.grad is not None:
                    populations[f"gradients/{name}"] = numbers(parameter.grad)
                if self._parameters:
                    populations[f"parameters/{name}"] = numbers(parameter.detach())
        self._run.bins_many(populations, context, binning=self._binning, every=every)


class _ForwardHook:
    """Counts what a module returns; a copy of it, in a copied or stored module, does nothing.

    Args:
        watch: Whose it is.
        handle: The series of the module in training.
        evaluation: That of its evaluation, if it is to be counted.
    """

    def __init__(self, watch: Watch, handle: BinsHandle, evaluation: BinsHandle | None = None):
        self._watch, self._handle, self._evaluation = watch, handle, evaluation
        self._forwards = 0

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        watch = self._watch
        handle = self._handle if module.training else self._evaluation
        if not watch.is_live or handle is None or is_producing_a_program():
            return
        if torch.compiler.is_compiling():
            if isinstance(output, torch.Tensor):
                handle.bins(numbers(output))
            else:
                watch.count_output(handle, output, None)
        elif watch.holds_places():
            watch.attempt(handle.name, watch.count_output, handle, output, None)
        elif not is_recomputing():
            self._forwards += 1
            if (self._forwards - 1) % watch.every == 0:
                watch.attempt(handle.name, watch.count_output, handle, output, 1)

    def __reduce__(self) -> tuple[Any, ...]:
        # Takes any three arguments, returns None, and needs nothing of ours to be loaded.
        return getattr, (nullcontext(), "__exit__")
