"""What the tracker raises when it is called wrongly, in eager and in compiled code alike."""

from typing import NoReturn

import torch

from .tracing import TraceError


class TrackerError(TraceError):
    """Base of the errors that a call on a run raises: it leaves a trace as itself."""


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
