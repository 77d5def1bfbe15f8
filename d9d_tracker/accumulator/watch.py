"""Histograms of a whole model: gradients and parameters at every optimizer step, activations at every forward."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from d9d_tracker.base import BinsHandle
from d9d_tracker.errors import TrackerTypeError, TrackerValueError
from d9d_tracker.tracing import forget_compiled_code

from .slots import check_settings

if TYPE_CHECKING:
    from d9d_tracker.config import AccumulatorConfig, Binning


logger = logging.getLogger("d9d_tracker")

_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


class WatchedRun(Protocol):
    """What a watch needs of a run."""

    config: AccumulatorConfig
    watches: list[Watch]

    def bins_series(self, name: str, *, binning: Binning | None = None, every: int | None = None) -> BinsHandle:
        """See ``AccumulatingRun``."""
        ...

    def bins_many(
        self, values: Mapping[str, torch.Tensor], *, binning: Binning | None = None, every: int | None = None
    ) -> None:
        """See ``AccumulatingRun``."""


class Watch:
    """Hooks that log a module, until ``remove`` or the end of the run.

    Gradients and parameters are counted right before an optimizer steps that holds them: the gradients are then those
    the optimizer uses, accumulated over micro-batches, reduced across ranks and clipped; unscaled too, unless a fused
    optimizer does that itself. With ``optimizer.step(closure)`` they are those of the closure's first evaluation. All
    of them take one kernel launch per dtype. Activations are counted in the forward of every leaf module, also in
    compiled code: what was compiled before does not look for hooks, so all compiled code is compiled once more.

    Of a sparse gradient its values are counted, for which a GPU has to be waited for; of complex numbers the real and
    the imaginary parts. Names are those of the bare model, whatever is wrapped around it. A hook never raises: what
    cannot be counted is said once.

    Args:
        run: Where to log.
        module: What to watch.
        gradients: Log ``gradients/<parameter>``.
        parameters: Log ``parameters/<parameter>``.
        activations: Log ``activations/<module>``: the output of every leaf module; of several outputs, the first.
        every: Count on steps divisible by this only; by default the run's cadence.
        binning: How to bin; by default the run's binning.

    Attributes:
        series: The names it logs to.

    Raises:
        TrackerTypeError: If the module or the binning is none.
        TrackerValueError: If the cadence is no positive int, there is nothing to log, or the run is closed.
    """

    def __init__(
        self,
        run: WatchedRun,
        module: nn.Module,
        *,
        gradients: bool,
        parameters: bool,
        activations: bool,
        every: int | None,
        binning: Binning | None,
    ):
        if not isinstance(module, nn.Module):
            raise TrackerTypeError(f"watch takes a torch.nn.Module, not {type(module).__name__}")
        config = run.config
        cadence = config.bins_every if every is None else every
        check_settings("watch", config.binning if binning is None else binning, cadence)
        self._run = run
        self._every = every
        self._binning = binning
        self._gradients = gradients
        self._parameters = parameters
        bare = _bare_names(module)
        self._names = {parameter: bare(name) for name, parameter in module.named_parameters()}
        self._is_live = True
        self._said: set[str] = set()
        self._handles: list[RemovableHandle] = []
        leaves = {
            bare(name) or type(child).__name__: child for name, child in module.named_modules() if _is_leaf(child)
        }
        self.series = {f"gradients/{name}" for name in self._names.values() if gradients}
        self.series |= {f"parameters/{name}" for name in self._names.values() if parameters}
        self.series |= {f"activations/{name}" for name in leaves if activations}
        if not self.series:
            raise TrackerValueError(
                f"watch: a {type(module).__name__} has nothing to log with {gradients=}, {parameters=}, {activations=}"
            )
        self._refuse_others()
        if gradients or parameters:
            self._handles.append(register_optimizer_step_pre_hook(self._before_step))
        if activations:
            for name, child in leaves.items():
                handle = run.bins_series(f"activations/{name}", binning=binning, every=every)
                self._handles.append(child.register_forward_hook(partial(self._after_forward, handle)))
            forget_compiled_code()

    def __deepcopy__(self, memo: dict[int, Any]) -> Watch:
        """Return a watch of nothing: a copy of the module is not watched."""
        other = object.__new__(Watch)
        other.__dict__.update(self.__dict__, _is_live=False, _handles=[], series=set())
        return other

    def remove(self) -> None:
        """Stop watching."""
        self._is_live = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.series.clear()

    def _refuse_others(self) -> None:
        for other in self._run.watches:
            if common := self.series & other.series:
                raise TrackerValueError(
                    f"watch: {min(common)!r} is watched already, and both would be counted together; watch the module "
                    "that holds both, or remove() the other watch first"
                )

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Count what the optimizer is about to use: now, or once its closure has computed it for the first time."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._try("an optimizer's step", self._count, optimizer)
            return None
        is_first = True

        def counted() -> Any:
            nonlocal is_first
            loss = closure()
            if is_first:
                is_first = False
                self._try("an optimizer's step", self._count, optimizer)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": counted}
        return (args[0], counted, *args[2:]), kwargs

    def _try(self, what: str, log: Callable[..., None], *arguments: Any) -> None:
        """Log from a hook, which must never end the training; say once what could not be."""
        try:
            log(*arguments)
        except Exception as error:
            if what not in self._said:
                self._said.add(what)
                logger.error("watch: %s cannot be counted, and training goes on: %s", what, error)

    def _count(self, optimizer: Optimizer) -> None:
        if not self._is_live:
            return
        populations: dict[str, torch.Tensor] = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = self._names.get(parameter)
                if name is None:
                    continue
                if self._gradients and parameter.grad is not None:
                    populations[f"gradients/{name}"] = _numbers(parameter.grad)
                if self._parameters:
                    populations[f"parameters/{name}"] = _numbers(parameter.detach())
        self._run.bins_many(populations, binning=self._binning, every=self._every)

    def _after_forward(self, handle: BinsHandle, module: nn.Module, args: Any, output: Any) -> None:
        if not self._is_live:
            return
        if isinstance(output, tuple | list) and output:
            output = output[0]
        if not isinstance(output, torch.Tensor):
            return
        if torch.compiler.is_compiling():
            handle.bins(output)
        else:
            self._try(handle.name, self._count_output, handle, output)

    def _count_output(self, handle: BinsHandle, output: torch.Tensor) -> None:
        handle.bins(_numbers(output))


def _bare_names(module: nn.Module) -> Callable[[str], str]:
    """Return what turns a name into that of the bare model: without what compiling or parallelising wraps around it."""
    wrapped = {f"{name}.module".lstrip(".") for name, child in module.named_modules() if isinstance(child, _PARALLEL)}

    def bare(name: str) -> str:
        parts = name.split(".")
        kept = [
            part
            for place, part in enumerate(parts)
            if part not in _WRAPPERS and ".".join(parts[: place + 1]) not in wrapped
        ]
        return ".".join(kept)

    return bare


def _is_leaf(module: nn.Module) -> bool:
    return not any(True for _ in module.children())


def _numbers(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce().values()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
