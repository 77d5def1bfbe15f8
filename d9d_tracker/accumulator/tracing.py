"""What is asked of the compiler while it traces: private parts of torch, each with the versions that it holds on."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._guards import CompileContext, TracingContext

_REGION = "invoke_subgraph"
_PACKAGE = os.path.dirname(os.path.dirname(__file__))


def compilation() -> str | None:
    """Return which compilation is going on, in words that are its own; None outside of one. Torch 2.11 to 2.15."""
    compile_id = CompileContext.current_compile_id()
    return None if compile_id is None else str(compile_id)


def user_line() -> str | None:
    """Return the file and line of the user's code that is being traced; None if unknown. Torch 2.11 to 2.15."""
    if TracingContext.try_get() is None:
        return None
    for frame in reversed(TracingContext.extract_stack()):
        if not frame.filename.startswith(_PACKAGE):
            return f"{frame.filename}:{frame.lineno}"
    return None


def is_in_region() -> bool:
    """Tell, while tracing, whether the code is inside ``torch.compiler.nested_compile_region``. Torch 2.11 to 2.15."""
    tracer = InstructionTranslator.current_tx().output.current_tracer
    while tracer is not None:
        if _REGION in str(tracer.source_target):
            return True
        tracer = tracer.parent
    return False


def check_when_traced(check: Callable[[torch.fx.GraphModule], None]) -> None:
    """Have the graph that is being traced checked when it is complete. Torch 2.11 to 2.15.

    Args:
        check: Gets the graph, once; what it raises ends the compilation.
    """
    output = InstructionTranslator.current_tx().output
    if check not in output.register_finalizer_fns:
        output.add_graph_finalizer(check)


def outside_transforms() -> AbstractContextManager[Any]:
    """Return a block whose work is done for real, also while a torch.func transform is traced. Torch 2.11 to 2.15."""
    return temporarily_clear_interpreter_stack()


def forget_compiled_code() -> None:
    """Have all compiled code compiled again when it is next called: it has no guards on hooks."""
    torch.compiler.reset()


def repeated_regions(module: torch.fx.GraphModule) -> Iterator[list[torch.Tensor]]:
    """Yield what goes into each region that a graph calls more than once: the tensors from outside. Torch 2.11 to 2.15.

    Args:
        module: A graph as it was traced.
    """
    outside = {
        node: node.meta["grapharg"].example
        for node in module.graph.nodes
        if node.op == "placeholder" and "grapharg" in node.meta
    }
    yield from _repeated(module, outside)


def _repeated(module: torch.fx.GraphModule, known: dict[Any, Any]) -> Iterator[list[torch.Tensor]]:
    regions: dict[str, list[torch.fx.Node]] = defaultdict(list)
    for node in module.graph.nodes:
        if node.op == "call_function" and _REGION in str(node.target):
            regions[node.args[0].target].append(node)
    for name, calls in regions.items():
        inputs = [[known.get(argument) for argument in call.args[2:]] for call in calls]
        if len(calls) > 1:
            yield [tensor for one in inputs for tensor in one if tensor is not None]
        body = getattr(module, name)
        placeholders = [node for node in body.graph.nodes if node.op == "placeholder"]
        for one in inputs:
            yield from _repeated(body, dict(zip(placeholders, one, strict=False)))
