"""Logging from a backward that is compiled together with its forward: from gradient hooks, for example.

There the buffers must not be arguments. The compiler would keep them from the forward to the backward, as it does with
all the backward needs: what is written in between would be lost, or be an error, and a checkpointed forward that
writes to them would run again. So these operators take the token of a run and find its buffers when they run. They are
registered to have an effect, which keeps the compiler from removing, repeating or reordering them.
"""

from collections.abc import Callable
from typing import Any

import torch

from d9d_tracker.bank.buffers import Buffers
from d9d_tracker.bank.target import Target
from d9d_tracker.tracing import register_effect

from .runs import runs

_library = torch.library.Library("d9d_tracker", "FRAGMENT")
_library.define(
    "merge_scalars_with_effect(str token, Tensor? places, int[] at, Tensor[] values, int lane, Tensor? weight) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "histogram_with_effect(str token, Tensor? places, Tensor[] values, int[] at, int every, int kind, int bins, "
    "float low, float high) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "add_counts_with_effect(str token, Tensor values, int at, int every) -> ()", tags=(torch.Tag.pt2_compliant_tag,)
)
_library.define(
    "merge_vector_with_effect(str token, int[] at, Tensor[] values, int every, bool is_max, int finish, Tensor? scale) "
    "-> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
finishes: list[Callable[..., torch.Tensor]] = []  # what makes numbers of the vectors of compiled code


def _merge_scalars(
    buffers: Buffers,
    places: torch.Tensor | None,
    at: list[int],
    values: list[torch.Tensor],
    lane: int,
    weight: torch.Tensor | None,
) -> None:
    table = buffers.places.table if places is None else places
    if buffers.has_bank((*values, weight)) and (buffers.is_gpu or buffers.host is not None):
        torch.ops.d9d_tracker.merge_scalars_(buffers.scalars.current, table, at, values, [], lane, weight, 1.0)
    else:
        buffers.change(buffers.merge_plain, Target(at, table), values, lane, weight)


def _histogram(
    buffers: Buffers, places: torch.Tensor | None, values: list[torch.Tensor], at: list[int], *parameters: Any
) -> None:
    target = Target(at, buffers.places.table if places is None else places)
    buffers.change(buffers.count, target, values, *parameters)


def _add_counts(buffers: Buffers, values: torch.Tensor, at: int, every: int) -> None:
    buffers.change(buffers.add_counts, values, at, every, buffers.places.table)


def _merge_vector(
    buffers: Buffers,
    at: list[int],
    values: list[torch.Tensor],
    every: int,
    is_max: bool,
    finish: int,
    scale: torch.Tensor | None,
) -> None:
    if buffers.clock.step % every:
        return
    table, columns = buffers.places.table.numpy(), buffers.scalars.current.shape[1]
    slots = [int(table[place]) % columns if place >= 0 else columns for place in at]  # what has no column is left out
    buffers.change(buffers.merge_vector, slots, values, is_max, finishes[finish], scale)


def _of_run(function: Callable[..., None]) -> Callable[..., None]:
    def call(token: str, *arguments: Any) -> None:
        if (run := runs.get(token)) is not None:  # else its tracker is gone, and a backward is late
            function(run.buffers, *arguments)

    return call


for _name, _function in (
    ("merge_scalars_with_effect", _merge_scalars),
    ("histogram_with_effect", _histogram),
    ("add_counts_with_effect", _add_counts),
    ("merge_vector_with_effect", _merge_vector),
):
    _library.impl(_name, _of_run(_function), "CompositeExplicitAutograd")
    _library.impl(_name, lambda *_: None, "Meta")
    register_effect(f"d9d_tracker::{_name}")

add_counts_with_effect = torch.ops.d9d_tracker.add_counts_with_effect.default
histogram_with_effect = torch.ops.d9d_tracker.histogram_with_effect.default
merge_scalars_with_effect = torch.ops.d9d_tracker.merge_scalars_with_effect.default
merge_vector_with_effect = torch.ops.d9d_tracker.merge_vector_with_effect.default
