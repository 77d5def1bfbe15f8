"""Logging from a backward that is compiled together with its forward: from gradient hooks, for example.

There the buffers must not be arguments. The compiler would keep them from the forward to the backward, as it does with
all the backward needs: what is written in between would be lost, or be an error, and a checkpointed forward that
writes to them would run again. So these operators take the token of a run and find its buffers when they run. They are
registered to have an effect, which keeps the compiler from removing, repeating or reordering them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from d9d_tracker.bank.buffers import Buffers
from d9d_tracker.bank.places import Target
from d9d_tracker.tracing import register_effect

from .runs import runs

_library = torch.library.Library("d9d_tracker", "FRAGMENT")
finishes: list[Callable[..., Tensor]] = []  # what makes numbers of the vectors of compiled code


def _operator(schema: str) -> Callable[[Callable[..., None]], Any]:
    """Make of a function of a run's buffers an operator with an effect, of the run's token."""
    name = schema.partition("(")[0]

    def register(function: Callable[..., None]) -> Any:
        def call(token: str, *arguments: Any) -> None:
            if (run := runs.get(token)) is not None:  # else its tracker is gone, and a backward is late
                function(run.buffers, *arguments)

        _library.define(f"{schema} -> ()", tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, call, "CompositeExplicitAutograd")
        _library.impl(name, lambda *_: None, "Meta")
        register_effect(f"d9d_tracker::{name}")
        return getattr(torch.ops.d9d_tracker, name).default

    return register


@_operator("merge_scalars_with_effect(str token, Tensor? places, int[] at, Tensor[] values, int lane, Tensor? weight)")
def merge_scalars_with_effect(
    buffers: Buffers, places: Tensor | None, at: list[int], values: list[Tensor], lane: int, weight: Tensor | None
) -> None:
    """Merge numbers into the places of a table, by default that of the run."""
    table = buffers.places.table if places is None else places
    if buffers.has_bank((*values, weight)) and (buffers.is_gpu or buffers.host is not None):
        torch.ops.d9d_tracker.merge_scalars_(buffers.scalars.current, table, at, values, [], lane, weight, 1.0)
    else:
        buffers.change(buffers.merge_plain, Target(at, table), values, lane, weight)


@_operator(
    "histogram_with_effect(str token, Tensor? places, Tensor[] values, int[] at, int every, int kind, int bins, "
    "float low, float high)"
)
def histogram_with_effect(
    buffers: Buffers, places: Tensor | None, values: list[Tensor], at: list[int], *parameters: Any
) -> None:
    """Count populations into the places of a table, by default that of the run."""
    target = Target(at, buffers.places.table if places is None else places)
    buffers.change(buffers.count, target, values, *parameters)


@_operator("add_counts_with_effect(str token, Tensor values, int at, int every)")
def add_counts_with_effect(buffers: Buffers, values: Tensor, at: int, every: int) -> None:
    """Add counts that are counts already to a place of the run."""
    buffers.change(buffers.add_counts, values, at, every, buffers.places.table)


@_operator(
    "merge_vector_with_effect(str token, int[] at, Tensor[] values, int every, bool is_max, int finish, Tensor? scale)"
)
def merge_vector_with_effect(
    buffers: Buffers, at: list[int], values: list[Tensor], every: int, is_max: bool, finish: int, scale: Tensor | None
) -> None:
    """Merge what one of ``finishes`` makes of vectors into places of the run, on steps divisible by ``every``."""
    if buffers.clock.step % every:
        return
    table, columns = buffers.places.table.numpy(), buffers.scalars.current.shape[1]
    slots = [int(table[place]) % columns if place >= 0 else columns for place in at]  # what has no column is left out
    buffers.change(buffers.merge_vector, slots, values, is_max, finishes[finish], scale)
