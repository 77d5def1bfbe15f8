"""What the tracker raises when it is called wrongly, in eager and in compiled code alike."""

from typing import NoReturn

import torch
from torch._dynamo.exc import UserError, UserErrorType


class TrackerError(UserError):
    """Base of the errors that a call on a run raises.

    It derives from Dynamo's ``UserError`` because that is the one kind of exception that leaves a trace as itself: any
    other becomes ``torch._dynamo.exc.Unsupported`` and loses its type.
    """

    def __init__(self, message: str):
        super().__init__(UserErrorType.INVALID_INPUT, message)


class TrackerValueError(TrackerError, ValueError):
    """A value, name or step that cannot be logged."""


class TrackerTypeError(TrackerError, TypeError):
    """An argument of a type that cannot be logged."""


@torch.compiler.assume_constant_result
def fail(error: type[TrackerError], message: str) -> NoReturn:
    """Raise an error from code that may be under trace.

    Args:
        error: The class to raise.
        message: Names the series, what was received and the next move.
    """
    raise error(message)
