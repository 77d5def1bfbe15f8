"""Numbers that a graph notes one by one: when it is complete, they are few writes of few vectors.

Every node of a graph costs the first step time, and every loop that Inductor makes of the nodes.
"""

import itertools
import operator
from typing import Any, cast

import torch
from torch.fx import GraphModule, Node, Proxy
from torch.fx.node import map_arg
from torch.fx.proxy import GraphAppendingTracer

from d9d_tracker.bank.places import names_of_places
from d9d_tracker.bank.vectors import joined
from d9d_tracker.bank.writes import Arange, as_float64, stacked, write_cells, write_whole
from d9d_tracker_kernels.device import DISPATCH_KEY
from d9d_tracker_kernels.lanes import LAST
from d9d_tracker_kernels.scalars import merge_scalars_

_library = torch.library.Library("d9d_tracker", "FRAGMENT")
_library.define(
    "note_scalars_(Tensor(a!) current, Tensor places, Tensor[] constants, Tensor[] values, int[] at, int lane, "
    "bool detach) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _note(current, places, constants, values, at, lane, detach) -> None:
    merge_scalars_(current, places, at, values, [], lane, None, 1.0)


_library.impl("note_scalars_", _note, "CPU")
_library.impl("note_scalars_", _note, DISPATCH_KEY)
_library.impl("note_scalars_", lambda *_: None, "Meta")
note_scalars = torch.ops.d9d_tracker.note_scalars_.default

_MANY = 4
_CHANGES_NOTHING = (operator.getitem, "detach", "unbind")


class _Number:
    """A number that is noted: its node, where, and in which stretch of notes with nothing between them."""

    def __init__(self, value: Any, note: Any, order: int, stretch: int, tracer: GraphAppendingTracer):
        self.value, self.note, self.order, self.stretch, self.tracer = value, note, order, stretch, tracer
        self.example: torch.Tensor = value.meta["example_value"]

    def alone(self) -> Any:
        """Return the number as it is where it is noted."""
        with self.note.graph.inserting_before(self.note):
            return self._as_float64()

    def among_others(self) -> Any:
        """Return the number as it is, in a dtype that loses nothing beside another number's."""
        if self.example.is_floating_point() and self.example.itemsize > 1 and not self.example.dim():
            return Proxy(self.value, self.tracer)
        return self._as_float64()

    def element(self) -> tuple[Node, int] | None:
        """Return the vector that the number is an element of, and which."""
        node = self.value
        while node.target == "detach":
            node = node.args[0]
        if node.target is not operator.getitem or type(node.args[1]) is not int or node.args[1] < 0:
            return None
        vector, index = node.args
        if vector.target in ("unbind", torch.unbind):
            vector = vector.args[0]
        example = vector.meta.get("example_value")
        return (vector, index) if isinstance(example, torch.Tensor) and example.dim() == 1 else None

    def _as_float64(self) -> Any:
        return as_float64(Proxy(self.value, self.tracer), self.example.dim(), self.note.args[6])


def join(module: GraphModule) -> None:
    """Write together what a graph notes of series with different names, where the last of it was noted.

    Such writes may change their order. With others of the bank, those of the last value may not.
    """
    names, groups = names_of_places(), list[list[_Number]]()
    open_groups: dict[Any, tuple[set[str], list[_Number]]] = {}  # by bank, table and lane
    tracer, stretch = GraphAppendingTracer(module.graph), 0
    node: Any
    for order, node in enumerate(module.graph.nodes):
        if node.target is note_scalars:
            current, places, _, values, at, lane, _ = node.args
            own, key = {names[place] for place in at}, (current, places, lane)
            if key not in open_groups or own & open_groups[key][0]:
                open_groups[key] = set(), []
                groups.append(open_groups[key][1])
            open_groups[key][0].update(own)
            open_groups[key][1].extend(_Number(value, node, order, stretch, tracer) for value in values)
            continue
        stretch += node.target not in _CHANGES_NOTHING
        writes = node.all_input_nodes
        for key in [key for key in open_groups if key[2] == LAST and key[0] in writes]:
            del open_groups[key]
    for group in groups:
        _write(group, tracer)
    module.recompile()


def _write(group: list[_Number], tracer: GraphAppendingTracer) -> None:
    notes = list(dict.fromkeys(number.note for number in group))
    last: Any = notes[-1]
    at, lane = [place for note in notes for place in note.args[4]], last.args[5]
    device = last.args[0].meta["example_value"].device

    def proxy(node: Node) -> Any:
        return Proxy(node, tracer)

    def arange(*ends: int) -> Any:
        return proxy(tracer.graph.call_function(torch.arange, ends, {"device": device}))

    current, places, constants = cast(Any, map_arg(last.args[:3], proxy))
    with tracer.graph.inserting_before(last):
        if constants:
            numbers = [number.alone() for number in group]
            write_whole(current, places, at, numbers, lane, None, arange, constants)
        else:
            write_cells(current, places, at, group, lane, None, arange, _stacked)
    for note in notes:
        tracer.graph.erase_node(note)


def _stacked(numbers: list[_Number], arange: Arange) -> Any:
    """See ``stacked``. Many that are noted side by side are read there together, as one if a vector's elements.

    Of a few, that would make as many buffers at each step as it spares nodes once.
    """
    parts: list[Any] = []
    runs = [[number for _, number in run] for _, run in itertools.groupby(enumerate(numbers), key=_stretch_and_vector)]
    for are_many, some in itertools.groupby(runs, key=lambda run: len(run) >= _MANY):
        if are_many:
            parts.extend(_together(run, arange) for run in some)
        else:
            parts.append(stacked([number.alone() for run in some for number in run], arange))
    return joined(parts)


def _stretch_and_vector(one: tuple[int, _Number]) -> tuple[int, Node | None, int]:
    position, number = one
    element = number.element()
    return (number.stretch, None, 0) if element is None else (number.stretch, element[0], element[1] - position)


def _together(run: list[_Number], arange: Arange) -> Any:
    first, element = run[0], run[0].element()
    end = max(run, key=lambda number: number.order).note
    with end.graph.inserting_before(end):
        if element is None:
            part = stacked([number.among_others() for number in run], arange)
        else:
            vector: Any = Proxy(element[0], first.tracer)
            part = vector[element[1] : element[1] + len(run)]
        part = part.detach() if first.note.args[6] else part
        return part.to(torch.float64, copy=True)
