"""Python numbers as inputs of a graph.

Dynamo compiles the first value of a float or int that it meets into the graph as a constant, and makes it an input only
when it meets another: one more graph. A learning rate is all but sure to change, so what is logged becomes an input at
once. Dynamo decides when code first looks at a variable, be it as an argument of a plain function. Between these two
calls is the place to look, before anything else does.
"""

from typing import Any

import torch
import torch._dynamo.config
from torch._dynamo.callback import callback_handler

_config: Any = torch._dynamo.config
_before: list[bool] = []


@torch.compiler.assume_constant_result
def begin_inputs() -> None:
    """While tracing: numbers that are looked at from now on become inputs."""
    if _restore not in callback_handler.end_callbacks:  # torch._dynamo.reset() forgets them
        callback_handler.register_end_callback(_restore)
    _before.append(_config.assume_static_by_default)
    _config.assume_static_by_default = False


@torch.compiler.assume_constant_result
def end_inputs() -> None:
    """While tracing: as it was before ``begin_inputs``."""
    _config.assume_static_by_default = _before.pop()


def _restore(*_: object) -> None:
    """After a trace that was given up between the two calls: as it was before."""
    while _before:
        end_inputs()
