"""What the tracker raises when it is called wrongly, in eager and in compiled code alike."""

from typing import Any, NoReturn, Self

from .lazy_torch import assume_constant_result, leaving_traces


class TrackerError(Exception):
    """Base of the errors that a call on a run raises: it leaves a trace as itself."""

    def __new__(cls, *arguments: Any) -> Self:
        """Make an error of the kind that leaves a trace, where there may be one."""
        return super().__new__(leaving_traces(cls), *arguments)


class TrackerValueError(TrackerError, ValueError):
    """A value, name or step that cannot be logged."""


class TrackerTypeError(TrackerError, TypeError):
    """An argument of a type that cannot be logged."""


def described(value: object) -> str:
    """Return what a message says of a value that was refused."""
    kind = type(value).__name__
    return f"{value!r} of type {kind}" if isinstance(value, str | int | float) else kind


@assume_constant_result
def fail(error: type[TrackerError], message: str) -> NoReturn:
    """Raise an error from code that may be under trace; the message names the series, the value and the next move."""
    raise error(message)
