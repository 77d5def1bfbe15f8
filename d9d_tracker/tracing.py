"""Private parts of torch that the tracker leans on, all of them: seen to hold on torch 2.11 to 2.15.

Each has a test of its own in ``tests/compiled/test_tracing.py``, which names what has changed when one breaks.

Nothing here imports Dynamo, which takes as long as torch itself, before something is traced.
"""

import inspect
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from types import CodeType, FrameType
from typing import Any

import torch
import torch.utils._pytree
import torch.utils.checkpoint
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._guards import ChainedSource, CompileContext, TracingContext
from torch._higher_order_ops.effects import _register_effectful_op
from torch._library.effects import EffectType
from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
from torch.utils._ordered_set import OrderedSet
from torch.utils._python_dispatch import _disable_current_modes

from .lazy_torch import assume_constant_result

_eval_frame: Any = torch._C._dynamo.eval_frame  # pyright: ignore[reportAttributeAccessIssue] has no stubs
_functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue] has no stubs

# A region that is called once may write to buffers while gradients are enabled. Not so in 2.11; 2.12 was not tried.
REGIONS_WRITE_IN_TRAINING = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
_REGION = "invoke_subgraph"
_BODIES = {
    "cond": "torch.cond",
    "flex_attention": "flex_attention",
    "map_impl": "map",
    "scan": "scan",
    "while_loop": "while_loop",
}
_FIXED = ("buffers", "target", "traced")  # attributes of runs and handles, for life
_PACKAGE = os.path.dirname(__file__)
_TRACING_A_BACKWARD = frozenset({"_method_register_hook", "trace_backward_graph"})
_CHECKPOINT_FILE = torch.utils.checkpoint.__file__
_AUTOGRAD_FILE = torch.autograd.__file__
_OPTIMIZER_FILE = sys.modules[torch.optim.Optimizer.__module__].__file__
_OPTIMIZER_STEP = "wrapper"
# Where checkpointing calls the user's forward again: reentrant, and not.
_RECOMPUTING = frozenset({"backward", "recompute_fn", "unpack_hook"})

_before: list[bool] = []


def mark_static(tensor: torch.Tensor) -> None:
    """Promise that a tensor keeps its address, as CUDA graphs need it of what they write to.

    Without a guard: code that meets another tensor takes it for an input of another address. As
    ``torch._dynamo.mark_static_address``.
    """
    tensor._dynamo_static_input_type = "unguarded"  # pyright: ignore[reportAttributeAccessIssue] it is Dynamo's


def allow_as_constant(kind: type) -> None:
    """Let instances of a class be arguments of functions whose results are constants, with a guard."""
    torch.utils._pytree.register_constant(kind)


def hangs_on_data(size: int) -> bool:
    """Tell, in code that is traced, whether a size is known only when the code runs: then any of it may be true."""
    from torch.fx.experimental.symbolic_shapes import guard_or_true

    return guard_or_true(size > 1000) and guard_or_true(size <= 1000)


def is_beyond_int64(value: int) -> bool:
    """Tell, in code that is traced, whether an int is too large for a tensor; one that the code computes is not."""
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    return guard_or_false(value >= 2**63) or guard_or_false(value < -(2**63))


def register_effect(operator: str) -> None:
    """Keep the compiler from removing, repeating or reordering an operator that has no results."""
    _register_effectful_op(operator, EffectType.ORDERED)


def run_as_it_is(*functions: Callable[..., Any]) -> None:
    """Have Dynamo not compile functions that code which is not compiled calls, nor what they call.

    It would otherwise, between two graphs of one function. In compiled code, they are a part of it as before.
    """
    skip = _eval_frame._FrameExecStrategy(_eval_frame._FrameAction.SKIP, _eval_frame._FrameAction.SKIP)
    for function in functions:
        _eval_frame.set_code_exec_strategy(inspect.unwrap(function).__code__, skip)


@assume_constant_result
def is_producing_a_program() -> bool:
    """Tell whether nothing runs for real: under ``torch.export`` or ``torch.jit.trace``, or a ``FakeTensorMode``.

    Not by ``torch.compiler.is_exporting()``, which Dynamo takes for true in torch 2.11, whatever it traces for.
    """
    return torch.compiler._is_exporting_flag or torch._C._get_tracing_state() is not None or is_under_fake_mode()


@assume_constant_result
def begin_inputs() -> None:
    """While tracing: numbers that are looked at from now on become inputs.

    Dynamo compiles the first value of a float or int that it meets into the graph as a constant, and makes it an input
    only when it meets another: one more graph. It decides when code first looks at a variable, be it as an argument of
    a plain function.
    """
    from torch._dynamo.callback import callback_handler

    if _restore not in callback_handler.end_callbacks:  # torch._dynamo.reset() forgets them
        callback_handler.register_end_callback(_restore)
    config = _config()
    _before.append(config.assume_static_by_default)
    config.assume_static_by_default = False


@assume_constant_result
def end_inputs() -> None:
    """While tracing: as it was before ``begin_inputs``."""
    _config().assume_static_by_default = _before.pop()


def _config() -> Any:
    import torch._dynamo.config

    return torch._dynamo.config


def _restore(*_: object) -> None:
    """After a trace that was given up between the two calls: as it was before."""
    while _before:
        end_inputs()


@assume_constant_result
def is_backward_traced() -> bool:
    """Tell, while tracing, whether the code will run in the backward of what is being compiled."""
    return any(code.co_name in _TRACING_A_BACKWARD and "_dynamo" in code.co_filename for code in _callers())


def is_in_backward() -> bool:
    """Tell whether the autograd engine is running the caller."""
    return torch._C._current_graph_task_id() != -1


def is_recomputed() -> bool:
    """Tell whether eager checkpointing runs the caller's forward again, in a backward: it was logged before.

    A gradient hook runs in the backward too, but is no recomputation: between it and an enclosing checkpoint there is
    always a call of the autograd engine.
    """
    if not is_in_backward():
        return False
    for code in _callers():
        if code.co_filename == _CHECKPOINT_FILE and code.co_name in _RECOMPUTING:
            return True
        if code.co_filename == _AUTOGRAD_FILE or code.co_name == "_engine_run_backward":
            return False
    return False


def is_in_another_step() -> bool:
    """Tell whether the optimizer that calls a hook before its step was called by another optimizer's step."""
    steps = [code for code in _callers() if code.co_filename == _OPTIMIZER_FILE and code.co_name == _OPTIMIZER_STEP]
    return len(steps) > 1


def is_checkpointed() -> bool:
    """Tell whether the caller runs, or is traced, inside of eager activation checkpointing."""
    return any(code.co_filename == _CHECKPOINT_FILE for code in _callers())


def _callers() -> Iterator[CodeType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


@assume_constant_result
def is_transformed() -> bool:
    """Tell whether the caller runs inside a transform of torch.func, such as ``grad``."""
    return _functorch.peek_interpreter_stack() is not None


def is_ordinary_code() -> bool:
    """Tell, while tracing, whether the code will run once for each call, as it is written, in the graph itself."""
    return not (
        is_producing_a_program()
        or is_backward_traced()
        or is_transformed()
        or is_checkpointed()
        or _output().current_tracer.parent is not None
    )


def is_vmapped() -> bool:
    """Tell whether the caller runs inside ``torch.vmap``."""
    stack = _functorch.get_interpreter_stack()
    return stack is not None and any(level.key() == _functorch.TransformType.Vmap for level in stack)


def is_plain() -> bool:
    """Tell whether eager code runs as it is written: nothing transforms, intercepts, records or recomputes it."""
    return not (
        modes_around()
        or _functorch.peek_interpreter_stack()
        or torch._C._get_tracing_state()
        or torch.compiler._is_exporting_flag
        or is_in_backward()
    )


# Tells how many modes see the operators that eager code calls: a ``FakeTensorMode``, or one that counts them.
modes_around: Callable[[], int] = torch._C._len_torch_dispatch_stack


def compilation() -> str | None:
    """Return which compilation is going on, in words that are its own; None outside of one."""
    compile_id = CompileContext.current_compile_id()
    return None if compile_id is None else str(compile_id)


def user_line() -> str | None:
    """Return the file and line of the user's code that is being traced; None if unknown."""
    if TracingContext.try_get() is None:
        return None
    for frame in reversed(TracingContext.extract_stack()):
        if not frame.filename.startswith(_PACKAGE):
            return f"{frame.filename}:{frame.lineno}"
    return None


def is_in_region() -> bool:
    """Tell, while tracing, whether the code is inside ``torch.compiler.nested_compile_region``."""
    return any(_REGION in str(operator) for operator in _operators_around())


@assume_constant_result
def body_around() -> str | None:
    """Return, while tracing, the name of the operator whose body the code is in, and whose body may write nothing."""
    names = [getattr(operator, "__name__", "") for operator in _operators_around()]
    return next((_BODIES[name] for name in names if name in _BODIES), None)


def _operators_around() -> Iterator[Any]:
    tracer = _output().current_tracer
    while tracer is not None:
        yield tracer.source_target
        tracer = tracer.parent


def check_when_traced(check: Callable[[torch.fx.GraphModule], None]) -> None:
    """Have the graph that is being traced checked, once, when it is complete; what is raised ends the compilation."""
    output = _output()
    if check not in output.register_finalizer_fns:
        output.add_graph_finalizer(check)


@assume_constant_result
def forget_own_guards(kind: str) -> None:
    """While tracing: no guards on what this package reads and never changes; on ``kind`` in place of ``_FIXED``."""
    check_when_traced(_forget_own_guards)


def _forget_own_guards(_: torch.fx.GraphModule) -> None:
    with suppress(Exception):  # of another torch: then guards stay, which cost time alone
        from torch._C._dynamo.guards import install_object_aliasing_guard  # noqa: F401 what _guard_that_same needs
        from torch._dynamo.guards import GuardBuilder
        from torch._dynamo.source import GlobalSource, TypeSource

        output, known = _output(), _output().side_effects
        names = {name for name, module in output.import_sources.items() if _is_ours(module)}
        names |= {name for name in output.global_scope if name.startswith(f"_{id(torch)}_")}  # for the type of a tensor
        found = [one for one in known.keepalive if _is_ours(type(one).__module__) and one in known]
        objects = {known[one].source for one in found}
        # A guard on the banks of several runs tells that they are not the same.
        fixed = _FIXED if sum(hasattr(one, "buffers") for one in found) == 1 else ()

        def is_fixed(source: Any) -> bool:
            if isinstance(source, GlobalSource):
                return source.global_name in names
            if not isinstance(source, ChainedSource):
                return False
            is_part = isinstance(source, TypeSource) or getattr(source, "member", None) in fixed
            return (is_part and source.base in objects) or is_fixed(source.base)

        kept = []
        for guard in output.guards:
            source, how = guard.originating_source, getattr(guard.create_fn, "func", None)
            if is_fixed(source) or (source in objects and how is GuardBuilder.NOT_PRESENT_IN_GENERIC_DICT):
                continue
            if how is GuardBuilder.DUPLICATE_INPUT and (other := guard.create_fn.keywords["source_b"]) in objects:
                guard = replace(guard, create_fn=partial(_guard_that_same, source_b=other))
            kept.append(guard)
        output.tracing_context.guards_context.dynamo_guards = type(output.guards)(OrderedSet(kept))


def _guard_that_same(builder: Any, guard: Any, source_b: Any) -> None:
    """As ``GuardBuilder.DUPLICATE_INPUT``, but not in Python."""
    from torch._C._dynamo.guards import install_object_aliasing_guard

    managers = builder.get_guard_manager(guard), builder.get_guard_manager_from_source(source_b)
    install_object_aliasing_guard(*managers, [f"{guard.name} is {source_b.name}"], guard.user_stack)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("d9d_tracker", "d9d_tracker_kernels")


def _output() -> Any:
    from torch._dynamo.symbolic_convert import InstructionTranslator

    return InstructionTranslator.current_tx().output


def is_under_fake_mode() -> bool:
    """Tell whether a ``FakeTensorMode`` is active in this thread."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


@contextmanager
def for_real() -> Iterator[None]:
    """Do the work of a block for real, also while a torch.func transform is traced, or under a ``FakeTensorMode``."""
    with temporarily_clear_interpreter_stack(), _disable_current_modes() if is_under_fake_mode() else nullcontext():
        yield


def forget_compiled_code() -> None:
    """Have all compiled code compiled again when it is next called: it has no guards on hooks."""
    if "torch._dynamo" in sys.modules:  # else there is none
        torch.compiler.reset()


def inputs_of_regions(module: torch.fx.GraphModule, calls: int) -> Iterator[list[torch.Tensor]]:
    """Yield what goes into each region that a traced graph calls so often, or more: the tensors from outside."""
    outside = {
        node: node.meta["grapharg"].example
        for node in module.graph.nodes
        if node.op == "placeholder" and "grapharg" in node.meta
    }
    yield from _inputs(module, calls, outside)


def _inputs(module: torch.fx.GraphModule, least: int, known: dict[Any, Any]) -> Iterator[list[torch.Tensor]]:
    regions: dict[str, list[torch.fx.Node]] = defaultdict(list)
    for node in module.graph.nodes:
        if node.op == "call_function" and _REGION in str(node.target):
            regions[node.args[0].target].append(node)
    for name, calls in regions.items():
        inputs = [[known.get(argument) for argument in call.args[2:]] for call in calls]
        if len(calls) >= least:
            yield [tensor for one in inputs for tensor in one if tensor is not None]
        body = getattr(module, name)
        placeholders = [node for node in body.graph.nodes if node.op == "placeholder"]
        for one in inputs:
            yield from _inputs(body, least, dict(zip(placeholders, one, strict=False)))


COMPILED = "unique_graphs"


def compiled_graphs() -> Callable[[str, int], int]:
    """Return what tells, given ``COMPILED``, how many graphs Dynamo has compiled, until its counters are cleared."""
    dynamo: Any = sys.modules.get("torch._dynamo.utils")
    return _compiled if dynamo is None else dynamo.counters["stats"].get


def _compiled(counter: str, default: int) -> int:
    dynamo: Any = sys.modules.get("torch._dynamo.utils")  # which may be imported meanwhile
    return default if dynamo is None else dynamo.counters["stats"].get(counter, default)
