"""Logging inside ``torch.compiler.nested_compile_region``, whose code all calls of a region share within a graph.

A region that writes to a buffer can be called once only: torch refuses more, in words that name no series. A region
with an operator that has an effect, and finds its buffers itself, can be called often; but in training it then loses
its gradient without a word (seen in torch 2.13 and 2.15). So a region writes to the buffers where gradients are
enabled, and has an effect, for a handle, where they are not; and what is left is refused here.
"""

import torch

from d9d_tracker.errors import TrackerValueError
from d9d_tracker.lazy_torch import assume_constant_result
from d9d_tracker.tracing import REGIONS_WRITE_IN_TRAINING, check_when_traced, inputs_of_regions, is_in_region

from .runs import runs


@assume_constant_result
def has_effect_here(is_handle: bool) -> bool:
    """Tell, while tracing, whether to log by an operator with an effect; elsewhere the buffers are written to."""
    if not is_in_region():
        return False
    is_allowed_once = REGIONS_WRITE_IN_TRAINING or not torch.is_grad_enabled()
    check_when_traced(_refuse_repeated if is_allowed_once else _refuse_all)
    return is_handle and not torch.is_grad_enabled()


@assume_constant_result
def is_training_region() -> bool:
    """Tell, while tracing, whether the code is in a region, in training."""
    return is_in_region() and torch.is_grad_enabled()


@assume_constant_result
def refuse_effect_here() -> None:
    """Refuse, while tracing, to log by an operator with an effect where a region would lose its gradient by it."""
    if is_training_region():
        raise TrackerValueError(
            "logged inside a torch.compiler.nested_compile_region, in training, on a device that has no bank of its "
            "own; return the value and log it outside of the region"
        )


def _refuse_repeated(module: torch.fx.GraphModule) -> None:
    _refuse(module, 2, "that is called more than once")


def _refuse_all(module: torch.fx.GraphModule) -> None:
    _refuse(module, 1, f"in training, with torch {torch.__version__}")


def _refuse(module: torch.fx.GraphModule, calls: int, when: str) -> None:
    names: dict[str, None] = {}
    for inputs in inputs_of_regions(module, calls):
        for run in list(runs.values()):
            buffers = run.buffers
            bank = (buffers.scalars.current, buffers.histograms.counts)
            if any(tensor is buffer for tensor in inputs for buffer in bank):
                names |= dict.fromkeys(name for tensor in inputs for name in buffers.places.names(tensor))
    if names:
        raise TrackerValueError(
            f"series {', '.join(map(repr, names))}: logged inside a torch.compiler.nested_compile_region {when}, which "
            "torch does not let write to buffers; return the value and log it outside of the region, or compile the "
            "blocks one by one, each with a handle (without gradients, a handle works in the region too: "
            "run.scalar_series, run.bins_series)"
        )
