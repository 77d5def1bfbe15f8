"""Telling the forward of activation checkpointing from its second run in the backward."""

import sys
from types import FrameType

import torch
import torch.utils.checkpoint

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
