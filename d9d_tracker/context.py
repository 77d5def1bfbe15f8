"""Contexts: tags of a series, as text."""

from numbers import Number

from .errors import TrackerTypeError, fail


def as_context(what: str, context: object) -> dict[str, str]:
    """Return tags as text: numbers and bools become what ``str`` makes of them. May be traced.

    Args:
        what: What is being logged, for the message.
        context: What was given as context.

    Raises:
        TrackerTypeError: If it is no dict, or one with a name that is not text or a value that is neither text, a
            number nor a bool.
    """
    if not isinstance(context, dict):
        fail(TrackerTypeError, f"{what!r}: a context is a dict of text, not {type(context).__name__}")
    tags: dict[str, str] = {}
    for key, value in context.items():
        if not isinstance(key, str):
            fail(TrackerTypeError, f"{what!r}: the tags of a context are named by text, not by {_kind(key)}")
        if isinstance(value, str):
            tags[key] = value
        elif isinstance(value, Number):
            tags[key] = str(value)
        else:
            fail(
                TrackerTypeError,
                f"{what!r}: a context is a dict of text or numbers, but {key!r} is {_kind(value)}; pass a str",
            )
    return tags


def _kind(value: object) -> str:
    kind = type(value).__name__
    return f"{value!r} of type {kind}" if isinstance(value, str | int | float) else kind
