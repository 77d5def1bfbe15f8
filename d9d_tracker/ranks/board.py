"""What the ranks of a job write for each other in its store, outside all collectives: a few words, seldom."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

_LEAST_PERIOD_SECONDS = 1.0
_MOST_LOOKS_PER_SECOND = 500


def period(size: int) -> float:
    """Return how many seconds a rank leaves between two looks at the store, so that it has little to do.

    Args:
        size: Number of ranks.
    """
    return max(_LEAST_PERIOD_SECONDS, size / _MOST_LOOKS_PER_SECOND)


class BoardLostError(Exception):
    """The store is gone: whoever had it has ended."""


class Board:
    """A part of a job's store. Each key is written by one rank alone.

    Args:
        store: The store.
        name: Of the part.

    Attributes:
        store: The part, as a store.
    """

    def __init__(self, store: Any, name: str):
        self.store = dist.distributed_c10d.PrefixStore(name, store)

    def put(self, key: str, value: Any) -> None:
        """Write plain JSON values; they replace what was there.

        Raises:
            BoardLostError: If the store is gone, here as elsewhere.
        """
        with _lost():
            self.store.set(key, json.dumps(value))

    def get(self, key: str) -> Any:
        """Return the values of a key; None if there are none. Does not wait for them."""
        with _lost():
            return json.loads(self.store.get(key)) if self.store.check([key]) else None

    def delete(self, key: str) -> None:
        """Remove a key."""
        with _lost():
            self.store.delete_key(key)


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise BoardLostError(str(error).partition("\n")[0]) from error
