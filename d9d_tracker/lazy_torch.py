"""What is asked of torch and Dynamo where they may not have been imported, as in a writer's process or by `show`."""

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from typing_extensions import TypeIs

if TYPE_CHECKING:
    import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Error = TypeVar("_Error", bound=Exception)


def is_tensor(value: object) -> "TypeIs[torch.Tensor]":
    """Tell whether a value is a tensor; without torch there is none."""
    return isinstance(value, getattr(sys.modules.get("torch"), "Tensor", ()))


def assume_constant_result(function: _Function) -> _Function:
    """Have a function called, and not traced, in compiled code, and its result compiled in as a constant.

    As ``torch.compiler.assume_constant_result``, which imports Dynamo.
    """
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess] it is Dynamo's
    return function


def leaving_traces(error: type[_Error]) -> type[_Error]:
    """Return a class of errors; where something may be traced, a subclass of it that leaves a trace as itself.

    Any other exception becomes ``torch._dynamo.exc.Unsupported``.
    """
    return _traced(error) if "torch._dynamo.exc" in sys.modules else error


@functools.cache
def _traced(error: type) -> Any:
    from torch._dynamo.exc import UserError, UserErrorType

    def initialize(self: UserError, message: str) -> None:
        UserError.__init__(self, UserErrorType.INVALID_INPUT, message)

    methods = {"__init__": initialize, "__reduce__": lambda self: (error, self.args)}
    names = {"__module__": error.__module__, "__qualname__": error.__qualname__}
    return error if issubclass(error, UserError) else type(error.__name__, (error, UserError), names | methods)
