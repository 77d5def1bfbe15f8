"""Numbers in code that is traced: Dynamo sees one call for each.

What Dynamo inlines, it pays for line by line, and the compiled code guards on at each call. So a call in the most
ordinary way is two frames and one operator here.
"""

from collections.abc import Sequence
from typing import Any

import torch

from d9d_tracker.lazy_torch import assume_constant_result
from d9d_tracker.series.series import VALUE_LANE, ContextItems, Reduction
from d9d_tracker.tracing import begin_inputs, check_when_traced, end_inputs, forget_own_guards, is_ordinary_code

from .noted_scalars import join, note_scalars
from .runs import Key
from .slots import scalar_at


@assume_constant_result
def _begin(
    key: Key, kind: str, names: Sequence[str], items: ContextItems, reduce: Reduction
) -> tuple[tuple[int, ...], int, bool] | None:
    """Begin to look at numbers; return their places, their lane and whether to detach, if nothing is out of the way."""
    begin_inputs()
    if not is_ordinary_code() or not all(names):
        return None
    at = tuple(scalar_at(key, True, name, items, reduce) for name in names)
    check_when_traced(join)
    forget_own_guards(kind)
    return None if min(at) < 0 else (at, VALUE_LANE[reduce], torch.is_grad_enabled())


def note(run: Any, names: Sequence[str], values: Sequence[Any], items: ContextItems, reduce: Reduction) -> bool:
    """Merge tensors of one element as most calls do; False, with nothing done, if there is more to the call."""
    if run.traced is None:
        return False
    current, places, constants = run.traced
    device = current.device  # looked at before what begins: its size is no input
    found = _begin(run.key, run.kind, names, items, reduce)
    for value in values:
        if type(value) is not torch.Tensor or value.numel() != 1 or value.is_complex() or value.device != device:
            found = None
    end_inputs()
    if found is None:
        return False
    at, lane, detach = found
    note_scalars(current, places, constants, values, at, lane, detach)
    return True
