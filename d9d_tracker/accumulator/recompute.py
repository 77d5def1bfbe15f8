"""Code that runs in another way than it is written: again in a backward, or transformed by torch.func."""

import sys
from types import FrameType
from typing import Any

import torch
import torch.utils.checkpoint

from d9d_tracker.errors import TrackerValueError

_functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue] has no stubs
_CHECKPOINT_FILE = torch.utils.checkpoint.__file__
_AUTOGRAD_FILE = torch.autograd.__file__
# Where checkpointing calls the user's forward again: reentrant, and not.
_RECOMPUTING = frozenset({"backward", "recompute_fn", "unpack_hook"})


def is_recomputing() -> bool:
    """Tell whether the caller runs inside a forward that eager activation checkpointing runs again.

    What was logged by the first run must not be logged once more. A gradient hook runs in the backward too, but is no
    recomputation: between it and an enclosing checkpoint there is always a call of the autograd engine.
    """
    if torch._C._current_graph_task_id() == -1:
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_filename == _CHECKPOINT_FILE and code.co_name in _RECOMPUTING:
            return True
        if code.co_filename == _AUTOGRAD_FILE or code.co_name == "_engine_run_backward":
            return False
        frame = frame.f_back
    return False


def is_transformed() -> bool:
    """Tell whether the caller runs inside a transform of torch.func, such as ``grad``."""
    return _functorch.peek_interpreter_stack() is not None


def check_place(name: str) -> None:
    """Refuse to log inside ``torch.vmap``, where one value stands for many.

    Args:
        name: Name of the series.

    Raises:
        TrackerValueError: If that is where the caller runs.
    """
    stack = _functorch.get_interpreter_stack()
    if stack is not None and any(level.key() == _functorch.TransformType.Vmap for level in stack):
        raise TrackerValueError(
            f"series {name!r} was logged inside torch.vmap, where one value stands for many; return the value and "
            "log it outside, reduced or with bins"
        )


@torch.compiler.assume_constant_result
def check_traced_place(name: str) -> None:
    """Refuse, while tracing, what ``check_place`` refuses, and a forward that eager checkpointing will run again.

    Args:
        name: Name of the series.

    Raises:
        TrackerValueError: If that is what is being traced. Compiled code cannot tell the second run.
    """
    check_place(name)
    if _is_checkpointing():
        raise TrackerValueError(
            f"series {name!r} is logged by a compiled function inside activation checkpointing, which runs it twice, "
            "and compiled code cannot tell the second run: compile the function that calls the checkpoint instead, or "
            "log outside of the checkpointed function"
        )


@torch.compiler.assume_constant_result
def is_refused_place() -> bool:
    """Tell, while tracing, whether ``check_traced_place`` would refuse: without a name, which would be a guard."""
    try:
        check_traced_place("")
    except TrackerValueError:
        return True
    return False


def _is_checkpointing() -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == _CHECKPOINT_FILE:
            return True
        frame = frame.f_back
    return False
