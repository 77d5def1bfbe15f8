"""Numbers in code that is traced: Dynamo sees one call for each, and the writes of a graph become few.

What Dynamo inlines, it pays for line by line, and the compiled code guards on at each call. So a call in the most
ordinary way is two frames and one operator here; when a graph is complete, the operators that may be one write are.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Proxy
from torch.fx.node import map_arg
from torch.fx.proxy import GraphAppendingTracer

from d9d_tracker.bank.places import names_of_places
from d9d_tracker.bank.scalars import as_float64, write
from d9d_tracker.lazy_torch import assume_constant_result
from d9d_tracker.series.series import VALUE_LANE, ContextItems, Reduction
from d9d_tracker.tracing import begin_inputs, check_when_traced, end_inputs, forget_own_guards, is_ordinary_code
from d9d_tracker_kernels.device import DISPATCH_KEY
from d9d_tracker_kernels.lanes import LAST
from d9d_tracker_kernels.scalars import merge_scalars_

from .runs import Key
from .slots import scalar_at

_library = torch.library.Library("d9d_tracker", "FRAGMENT")
_library.define(
    "note_scalars_(Tensor(a!) current, Tensor places, Tensor[] constants, int[] at, Tensor[] values, int lane, "
    "bool detach) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _note(current, places, constants, at, values, lane, detach) -> None:
    merge_scalars_(current, places, at, values, [], lane, None, 1.0)


_library.impl("note_scalars_", _note, "CPU")
_library.impl("note_scalars_", _note, DISPATCH_KEY)
_library.impl("note_scalars_", lambda *_: None, "Meta")
_note_scalars = torch.ops.d9d_tracker.note_scalars_.default


@assume_constant_result
def _begin(
    key: Key, kind: str, names: Sequence[str], items: ContextItems, reduce: Reduction
) -> tuple[tuple[int, ...], int, bool] | None:
    """Begin to look at numbers; return their places, their lane and whether to detach, if nothing is out of the way."""
    begin_inputs()
    if not is_ordinary_code():
        return None
    at = tuple(scalar_at(key, True, name, items, reduce) for name in names)
    check_when_traced(_join)
    forget_own_guards(kind)
    return None if min(at) < 0 else (at, VALUE_LANE[reduce], torch.is_grad_enabled())


def note(run: Any, names: Sequence[str], values: Sequence[Any], items: ContextItems, reduce: Reduction) -> bool:
    """Merge tensors of one element as most calls do; False, with nothing done, if there is more to the call."""
    if run.traced is None:
        return False
    current, places, constants = run.traced
    device = current.device
    for name in names:
        if type(name) is not str or not name:
            return False
    found = _begin(run.key, run.kind, names, items, reduce)
    for value in values:
        if type(value) is not torch.Tensor or value.numel() != 1 or value.is_complex() or value.device != device:
            found = None
    end_inputs()
    if found is None:
        return False
    at, lane, detach = found
    _note_scalars(current, places, constants, at, values, lane, detach)
    return True


def _join(module: GraphModule) -> None:
    """Write together what a graph notes of series with different names, where the last of it was noted.

    Such writes may change their order. With others of the bank, those of the last value may not.
    """
    names, groups = names_of_places(), list[list[Any]]()
    open_groups: dict[Any, tuple[set[str], list[Any]]] = {}  # by bank, table and lane
    node: Any
    for node in module.graph.nodes:
        if node.target is _note_scalars:
            current, places, _, at, _, lane, _ = node.args
            own, key = {names[place] for place in at}, (current, places, lane)
            if key not in open_groups or own & open_groups[key][0]:
                open_groups[key] = set(), []
                groups.append(open_groups[key][1])
            open_groups[key][0].update(own)
            open_groups[key][1].append(node)
        else:
            writes = node.all_input_nodes
            for key in [key for key in open_groups if key[2] == LAST and key[0] in writes]:
                del open_groups[key]
    for group in groups:
        _write(module.graph, group)
    module.recompile()


def _write(graph: Graph, group: list[Any]) -> None:
    tracer = GraphAppendingTracer(graph)
    at: list[int] = []
    values: list[Any] = []
    for node in group:  # each where it was noted: it may be changed in place after that
        with graph.inserting_before(node):
            at += node.args[3]
            values += [
                as_float64(Proxy(value, tracer), value.meta["example_value"].dim(), node.args[6])
                for value in node.args[4]
            ]
    last: Any = group[-1]
    device = last.args[0].meta["example_value"].device

    def arange(*ends: int) -> Any:
        return Proxy(graph.call_function(torch.arange, ends, {"device": device}), tracer)

    def proxy(node: Any) -> Any:
        return Proxy(node, tracer)

    parts: Any = map_arg(last.args[:3], proxy)
    with graph.inserting_before(last):
        write(parts[0], parts[1], parts[2], at, values, last.args[5], None, arange)
    for node in group:
        graph.erase_node(node)
