"""Contexts: tags of a series, as text, and which of them hold where."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Number

from .errors import TrackerTypeError, described, fail

ContextItems = tuple[tuple[str, str], ...]


def as_items(tags: Mapping[str, str]) -> ContextItems:
    """Return tags in the one order that series are known by."""
    return tuple(sorted(tags.items()))


class Contexts:
    """The context of a run, and those of ``with`` blocks, each of which holds in its own task and thread alone.

    Attributes:
        persistent: That of the run.
        of_block: Returns that of the block where it is asked for; None outside of any.
    """

    def __init__(self) -> None:
        self.persistent: ContextItems = ()
        self._block: ContextVar[ContextItems | None] = ContextVar("d9d_tracker", default=None)
        self.of_block = self._block.get

    def get(self) -> ContextItems:
        """Return the context that holds where it is asked for."""
        block = self.of_block()
        return self.persistent if block is None else block

    def set(self, context: ContextItems) -> None:
        """Replace the context of the block, or outside of any that of the run."""
        if self._block.get() is None:
            self.persistent = context
        else:
            self._block.set(context)

    @contextmanager
    def block(self, tags: Mapping[str, str]) -> Iterator[None]:
        """Add tags within a ``with`` block."""
        before = self._block.get()
        token = self._block.set(as_items({**dict(self.get()), **tags}))
        try:
            yield
        finally:
            try:
                self._block.reset(token)
            except ValueError:  # left in another task, as a fixture of a test may be
                self._block.set(before)


def as_context(what: str, context: object) -> dict[str, str]:
    """Return tags as text, of numbers and bools what ``str`` makes of them; ``what`` is logged. May be traced."""
    if not isinstance(context, dict):
        fail(TrackerTypeError, f"{what!r}: a context is a dict of text, not {type(context).__name__}")
    tags: dict[str, str] = {}
    for key, value in context.items():
        if not isinstance(key, str):
            fail(TrackerTypeError, f"{what!r}: the tags of a context are named by text, not by {described(key)}")
        if isinstance(value, str):
            tags[key] = value
        elif isinstance(value, Number):
            tags[key] = str(value)
        else:
            fail(
                TrackerTypeError,
                f"{what!r}: a context is a dict of text or numbers, but {key!r} is {described(value)}; pass a str",
            )
    return tags
