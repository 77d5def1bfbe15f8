"""Histograms of a whole model: gradients and parameters at every optimizer step, activations at every forward."""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from d9d_tracker.base import BinsHandle
from d9d_tracker.calls.histogram_calls import HistogramCalls
from d9d_tracker.errors import TrackerTypeError, TrackerValueError
from d9d_tracker.series.series import ScalarSeries

from .hooks import Hooks
from .modules import refuse_flat_shards, unwrapped
from .names import Named, ParameterNames
from .norms import Norms, Part
from .optimizer_steps import OptimizerSteps
from .outputs import Outputs
from .room import refuse_contradictions, refuse_too_many
from .settings import ACTIVATIONS, GRADIENTS, PARAMETERS, UPDATES, Settings
from .values import numbers

_SKIPPED = {"amp": "skipped"}
_EVALUATION = {"mode": "eval"}


class Watch(Hooks):
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
        run: Where it logs.
        watches: All watches of the run; this one is added.
        module: What is watched.
        settings: What is logged of it.

    Attributes:
        series: The names it logs to.
        histograms: Those of histograms.
        scalars: The series that hold what norms are made of, by their names.

    Raises:
        TrackerTypeError: See ``AccumulatingRun.watch``.
        TrackerValueError: See there.
    """

    def __init__(self, run: HistogramCalls, watches: list[Watch], module: nn.Module, settings: Settings):
        if not isinstance(module, nn.Module):
            raise TrackerTypeError(f"watch takes a torch.nn.Module, not {type(module).__name__}")
        settings.check(run.config)
        super().__init__(run, settings.cadence(run.config))
        self.settings = settings
        self._watches = watches
        if settings.norms:
            refuse_flat_shards(module)
        module = unwrapped(module)
        self._names = ParameterNames(module)
        self._trained = self._names.trained
        self._taken: set[str] = set()  # by other watches, before the model took these names too
        self._looked = -1
        self._stepped = self._met = False
        self._updating: list[Part] = []
        self._outputs = None
        if settings.activations:
            self._outputs = Outputs(self, module, settings.binning, self._make_handles, self._follow)
        self.histograms, self.scalars, self.series = self._series_now()
        if not self.series:
            raise TrackerValueError(
                f"watch: a {type(module).__name__} has nothing to log with gradients={settings.gradients}, "
                f"parameters={settings.parameters}, activations={settings.activations}, norms={settings.norms}"
            )
        again = self._others_in_its_place()
        others = [other for other in watches if other not in again]
        planned = set().union(*(other.histograms for other in others))
        refuse_too_many(self.histograms, planned, run.buffers.histogram_series, "max_histograms")
        planned = set().union(*(other.scalars for other in others))
        refuse_too_many(self.scalars.keys(), planned, run.buffers.scalar_series, "max_scalars")
        refuse_contradictions(self.scalars, self.series - self.histograms, run.buffers.scalar_series)
        for other in again:
            other.remove()
        self._norms = Norms(run, settings.norm_series) if settings.norms else None
        updates = (self._begun, self._after) if settings.updates else None
        self._steps = OptimizerSteps(self.every, run.holds_places, self._before, self._skipped, updates)
        watches.append(self)  # before the hooks: whatever interrupts them, the end of the run finds them
        try:
            self._steps.register()
            if self._outputs is not None:
                self._outputs.register()
        except BaseException:
            self.remove()
            raise
        self._promise(self.histograms | self.scalars.keys())

    def remove(self) -> None:
        """Stop watching. What is missing until now is no longer awaited."""
        self.run.promises.withdraw(self.histograms | self.scalars.keys())
        self.close()

    def close(self) -> None:
        """Stop watching, because the run ends. Its last windows are on their way, and may lack what was promised."""
        self.is_live = False
        self._steps.remove()
        if self._outputs is not None:
            self._outputs.remove()
        self._norms = None
        for names in (self.histograms, self.scalars, self.series):
            names.clear()
        if self in self._watches:
            self._watches.remove(self)

    def _begun(self, optimizer: Optimizer) -> None:
        """Remember what the step will change. With a closure, the gradients are not there yet."""
        self.attempt("an update", self._remember, optimizer)

    def _before(self, optimizer: Optimizer, every: int) -> None:
        """Count what an optimizer is about to use: its gradients are there."""
        self._stepped = True
        self.attempt("an optimizer's step", self._count, optimizer, every, None)

    def _after(self, optimizer: Optimizer, every: int) -> None:
        """Count what the step has changed."""
        if self.is_live and self._norms is not None:
            parts, self._updating = self._updating, []
            self.attempt("an update", self._norms.log_updates, parts, every)

    def _skipped(self, optimizer: Optimizer) -> None:
        """Count what a gradient scaler has kept from an optimizer."""
        self.attempt("a skipped step", self._count, optimizer, 1, _SKIPPED)

    def behind(self, series: str) -> object:
        """Return the tensor or the layer that a series is of, for norms all of the model; None if it is gone."""
        kind, _, name = series.removeprefix(self.settings.base).partition("/")
        if kind == ACTIVATIONS:
            return None if self._outputs is None else self._outputs.layer(name)
        return self._names.parameter(name) if kind in (GRADIENTS, PARAMETERS) else self._names.module()

    def _others_in_its_place(self) -> list[Watch]:
        """Return the watches whose place this one takes: of the same tensors, or of a model that is gone."""
        again = []
        for other in self._watches:
            common = self.series & other.series
            theirs = {name: behind for name in common if (behind := other.behind(name)) is not None}
            if any(behind is not self.behind(name) for name, behind in theirs.items()):
                raise TrackerValueError(
                    f"watch: {min(common)!r} is watched already, and both would be counted together; watch the module "
                    "that holds both, give one of them a prefix=..., or remove() the other watch first"
                )
            if common:
                again.append(other)
        return again

    def _named(self, optimizer: Optimizer) -> Named:
        """Return the parameters of the model that an optimizer holds, under their names of now."""
        if torch.compiler.is_compiling():
            return self._names.traced(optimizer)
        step = self.run.buffers.clock.step
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
        settings = self.settings
        histograms: dict[str, torch.Tensor] = {}
        norms: list[Part] = []
        left_out: dict[str, str] = {}
        named = self._named(optimizer)
        if named:  # without a look at what it was, which compiled code would guard on
            self._met = True
        for kind, has_histogram in ((GRADIENTS, settings.gradients), (PARAMETERS, settings.parameters)):
            for name, parameter in named if has_histogram or settings.norms else ():
                tensor = parameter.grad if kind == GRADIENTS else parameter.detach()
                if tensor is None:
                    continue
                key = f"{kind}/{name}"
                why_not = self._why_not(key, tensor)
                if why_not is not None:
                    left_out[key] = why_not
                    continue
                if has_histogram:
                    histograms[settings.base + key] = numbers(tensor)
                norms.append(Part(key, tensor))
        self._say_left_out(left_out)
        if self._taken:
            norms = [part for part in norms if self.settings.norm_series.base + part.key not in self._taken]
        if histograms:
            self.run.bins_many(histograms, context, binning=settings.binning, every=every)
        if self._norms is not None:
            if context is not None:  # of a step that was skipped, the parameters are as they were
                norms = [part for part in norms if part.key.startswith(f"{GRADIENTS}/")]
            self._norms.log(norms, context, every, getattr(optimizer, "grad_scale", None))

    def _remember(self, optimizer: Optimizer) -> None:
        if self._norms is None:
            return
        parts = [
            Part(f"{UPDATES}/{name}", parameter)
            for name, parameter in self._named(optimizer)
            if parameter.requires_grad and self._why_not(f"{UPDATES}/{name}", parameter) is None
        ]
        self._updating = parts
        self._norms.remember([part.tensor for part in parts])

    def _why_not(self, key: str, tensor: torch.Tensor) -> str | None:
        if self.settings.base + key in self._taken:
            return "another watch logs to a series of this name"
        return self.why_not(tensor)

    def _say_left_out(self, left_out: dict[str, str]) -> None:
        for why in set(left_out.values()):
            names = [key for key, reason in left_out.items() if reason == why]
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self.say_once(f"{self.settings.base}{names[0]}{more}", why)

    def _series_now(self) -> tuple[set[str], dict[str, ScalarSeries], set[str]]:
        """Return the histograms, the series that have the norms' slots, and all names that are written."""
        layers = [] if self._outputs is None else self._outputs.names
        histograms = self.settings.histograms(self._trained, layers)
        made = [self.settings.norm_series.make(key, ()) for key in self.settings.norm_keys(self._trained)]
        written = {name for one in made for name, _ in one.sums}
        return histograms, {one.name: one for one in made}, histograms | written

    def _follow(self) -> None:
        """Go on with a model that has changed: promise what is new, and nothing that has left."""
        before = self.histograms | self.scalars.keys()
        self.histograms, self.scalars, self.series = self._series_now()
        self._taken = self.series & set().union(*(other.series for other in self._watches if other is not self))
        self.series -= self._taken
        self.histograms -= self._taken
        now = self.histograms | self.scalars.keys()
        self.run.promises.withdraw(before - now)
        self._promise(now - before)

    def _promise(self, names: set[str]) -> None:
        step = self.run.buffers.clock.step
        activations = {name for name in names if name.startswith(f"{self.settings.base}{ACTIVATIONS}/")}
        self.run.promises.add(names - activations, step, self.every, self._why_no_gradient)
        self.run.promises.add(activations, step, self.every, lambda: "no forward in training mode reached it")

    def _why_no_gradient(self) -> str:
        if not self._stepped:
            return "no optimizer has stepped"
        if not self._met:
            return (
                "the optimizers that stepped hold other tensors than the module's parameters, copies in float32 for "
                "example; watch the module that they are of, or log them with run.bins_many"
            )
        return "no gradient reached it, or no optimizer that stepped holds it"

    def _make_handles(self, name: str) -> tuple[BinsHandle, BinsHandle | None]:
        settings = self.settings
        series = f"{settings.base}{ACTIVATIONS}/{name}"
        if series in self._taken:
            raise TrackerValueError("another watch logs to a series of this name")
        make = functools.partial(self.run.bins_series, series, binning=settings.binning, every=self.every)
        return make(), make(_EVALUATION) if settings.evaluation else None
