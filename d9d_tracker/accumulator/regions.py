"""Logging inside ``torch.compiler.nested_compile_region``, whose code all calls of a region share within a graph.

A region that writes to a buffer can be called once only: torch refuses more, in words that name no series. A region
with an operator that has an effect, and finds its buffers itself, can be called often; but in training it then loses
its gradient without a word (seen in torch 2.13 and 2.15). So a region writes to the buffers where gradients are
enabled, and has an effect, for a handle, where they are not; and what is left is refused here.
"""

import torch

from d9d_tracker.errors import TrackerValueError

from .runs import runs
from .tracing import check_when_traced, is_in_region, repeated_regions


@torch.compiler.assume_constant_result
def has_effect_here(is_handle: bool) -> bool:
    """Tell, while tracing, whether to log by an operator with an effect; elsewhere the buffers are written to.

    Args:
        is_handle: Whether the series is a handle's.
    """
    if not is_in_region():
        return False
    check_when_traced(_refuse_repeated)
    return is_handle and not torch.is_grad_enabled()


def _refuse_repeated(module: torch.fx.GraphModule) -> None:
    for inputs in repeated_regions(module):
        for run in list(runs.values()):
            buffers = run.buffers
            bank = (buffers.scalars.current, buffers.histograms.counts)
            if not any(tensor is buffer for tensor in inputs for buffer in bank):
                continue
            names = dict.fromkeys(name for tensor in inputs for name in buffers.places.names(tensor))
            raise TrackerValueError(
                f"series {', '.join(map(repr, names))}: logged inside a torch.compiler.nested_compile_region that is "
                "called more than once, which torch does not let write to buffers; return the value and log it outside "
                "of the region, or compile the blocks one by one, each with a handle (without gradients, a handle "
                "works in the region too: run.scalar_series, run.bins_series)"
            )
