"""Histograms of a whole model: gradients and parameters at every optimizer step, activations at every forward."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from d9d_tracker.accumulator.placement import is_partial
from d9d_tracker.accumulator.slots import check_settings
from d9d_tracker.base import BinsHandle
from d9d_tracker.errors import TrackerTypeError, TrackerValueError

from .modules import unwrapped
from .names import Named, ParameterNames
from .optimizer_steps import OptimizerSteps
from .outputs import Outputs
from .promises import Promises
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
        prefix: str | None,
        every: int | None,
        binning: Binning | None,
    ):
        if not isinstance(module, nn.Module):
            raise TrackerTypeError(f"watch takes a torch.nn.Module, not {type(module).__name__}")
        module = unwrapped(module)
        if prefix is not None and not isinstance(prefix, str):
            raise TrackerTypeError(f"watch: prefix={prefix!r} is not a str; pass 'actor', for example")
        config = run.config
        self.every = config.bins_every if every is None else every
        check_settings("watch", config.binning if binning is None else binning, self.every)
        self._run = run
        self._binning = binning
        self._gradients = gradients
        self._parameters = parameters
        self._evaluation = evaluation
        self._prefix = f"{prefix}/" if prefix else ""
        self._names = ParameterNames(module)
        self._trained = self._names.trained
        self._taken: set[str] = set()  # by other watches, before the model took these names too
        self._looked = -1
        self._stepped = self._met = False
        self.is_live = True
        self._said: set[str] = set()
        self._outputs = Outputs(self, module, self._make_handles, self._follow) if activations else None
        self.series = self._series_now()
        if not self.series:
            raise TrackerValueError(
                f"watch: a {type(module).__name__} has nothing to log with {gradients=}, {parameters=}, {activations=}"
            )
        again = self._refuse_others()
        self._refuse_too_many()
        for other in again:
            other.remove()
        self._steps = OptimizerSteps(self, self.every, run.holds_places)
        run.watches.append(self)  # before the hooks: whatever interrupts them, the end of the run finds them
        try:
            self._steps.register()
            if self._outputs is not None:
                self._outputs.register()
        except BaseException:
            self.remove()
            raise
        self._promise(self.series)

    def remove(self) -> None:
        """Stop watching. What is missing until now is no longer awaited."""
        self._run.promises.withdraw(self.series)
        self.close()

    def close(self) -> None:
        """Stop watching, because the run ends. Its last windows are on their way, and may lack what was promised."""
        self.is_live = False
        self._steps.remove()
        if self._outputs is not None:
            self._outputs.remove()
        self.series.clear()
        if self in self._run.watches:
            self._run.watches.remove(self)

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
            self.say_once(what, str(error))

    def say_once(self, what: str, why: str) -> None:
        """Say that something cannot be counted.

        Args:
            what: What, in words.
            why: The cause, in words.
        """
        if what not in self._said:
            self._said.add(what)
            logger.error("watch: %s cannot be counted, and training goes on: %s", what, why)

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

    def before(self, optimizer: Optimizer, every: int) -> None:
        """See ``Counting``."""
        if self.is_live:
            self._stepped = True
            self.attempt("an optimizer's step", self._count, optimizer, every, None)

    def skipped(self, optimizer: Optimizer) -> None:
        """See ``Counting``."""
        if self.is_live:
            self.attempt("a skipped step", self._count, optimizer, 1, _SKIPPED)

    def _series_now(self) -> set[str]:
        names = {f"gradients/{name}" for name, trained in self._trained.items() if self._gradients and trained}
        names |= {f"parameters/{name}" for name in self._trained if self._parameters}
        if self._outputs is not None:
            names |= {f"activations/{name}" for name in self._outputs.names}
        return {self._prefix + name for name in names}

    def _named(self, optimizer: Optimizer) -> Named:
        """Return the parameters of the model that an optimizer holds, under their names of now."""
        if torch.compiler.is_compiling():
            return self._names.traced(optimizer)
        step = self._run.buffers.clock.step
        named = self._names.of(optimizer, step)
        has_changed = self._names.trained is not self._trained
        if has_changed:
            self._trained = self._names.trained
            self._follow()
        if self._outputs is not None and (has_changed or step != self._looked):
            self._looked = step
            self._outputs.refresh()
        return named

    def _count(self, optimizer: Optimizer, every: int, context: dict[str, str] | None) -> None:
        found: dict[str, torch.Tensor] = {}
        left_out: dict[str, str] = {}
        for name, parameter in self._named(optimizer):
            self._met = True
            if self._gradients and parameter.grad is not None:
                self._add(f"{self._prefix}gradients/{name}", parameter.grad, found, left_out)
            if self._parameters:
                self._add(f"{self._prefix}parameters/{name}", parameter.detach(), found, left_out)
        for why in set(left_out.values()):
            names = [name for name, reason in left_out.items() if reason == why]
            self.say_once(f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}", why)
        self._run.bins_many(found, context, binning=self._binning, every=every)

    def _add(self, series: str, tensor: torch.Tensor, found: dict[str, torch.Tensor], left_out: dict[str, str]) -> None:
        device = self._run.buffers.device
        if series in self._taken:
            left_out[series] = "another watch logs to a series of this name"
        elif tensor.device != device:
            left_out[series] = f"it is on {tensor.device} and the buffers are on {device}"
        elif is_partial(tensor):
            left_out[series] = "it is partial, and exists only after a reduction across ranks"
        else:
            found[series] = numbers(tensor)

    def _follow(self) -> None:
        """Go on with a model that has changed: promise what is new, and nothing that has left."""
        now = self._series_now()
        self._taken = now & set().union(*(other.series for other in self._run.watches if other is not self))
        before, self.series = self.series, now - self._taken
        self._run.promises.withdraw(before - self.series)
        self._promise(self.series - before)

    def _promise(self, series: set[str]) -> None:
        step = self._run.buffers.clock.step
        activations = {name for name in series if name.startswith(f"{self._prefix}activations/")}
        self._run.promises.add(series - activations, step, self.every, self._why_no_gradient)
        self._run.promises.add(activations, step, self.every, lambda: "no forward in training mode reached it")

    def _refuse_others(self) -> list[Watch]:
        """Return the watches whose place this one takes: of the same tensors, or of a model that is gone."""
        again = []
        for other in self._run.watches:
            common = self.series & other.series
            if any(other._holds_another_than(self, name) for name in common):
                raise TrackerValueError(
                    f"watch: {min(common)!r} is watched already, and both would be counted together; watch the module "
                    "that holds both, give one of them a prefix=..., or remove() the other watch first"
                )
            if common:
                again.append(other)
        return again

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

    def _holds_another_than(self, other: Watch, series: str) -> bool:
        own = self._behind(series)
        return own is not None and own is not other._behind(series)

    def _behind(self, series: str) -> object:
        """Return the tensor or the layer that a series is of; None if it is gone."""
        kind, _, name = series.removeprefix(self._prefix).partition("/")
        if kind == "activations":
            return None if self._outputs is None else self._outputs.layer(name)
        return self._names.parameter(name)

    def _make_handles(self, name: str) -> tuple[BinsHandle, BinsHandle | None]:
        series = f"{self._prefix}activations/{name}"
        if series in self._taken:
            raise TrackerValueError("another watch logs to a series of this name")
        handles = [
            self._run.bins_series(series, context, binning=self._binning, every=self.every)
            for context in (None, *([_EVALUATION] * self._evaluation))
        ]
        return handles[0], handles[1] if self._evaluation else None
