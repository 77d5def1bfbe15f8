"""What the ranks of a job write for each other in its store, outside all collectives: a few words, seldom."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from .native_calls import native_call

_LEAST_PERIOD_SECONDS = 1.0
_MOST_LOOKS_PER_SECOND = 500
_FIRST_PAUSE_SECONDS = 0.01
_LEAST_LONGEST_PAUSE_SECONDS = 0.1
_MOST_CHECKS_PER_SECOND = 2000


def period(size: int) -> float:
    """Return how many seconds a rank of so many leaves between two looks at the store, so that it has little to do."""
    return max(_LEAST_PERIOD_SECONDS, size / _MOST_LOOKS_PER_SECOND)


def wait(is_done: Callable[[], bool], look: Callable[[], object], size: int) -> None:
    """Wait in glances, fewer where there are many ranks; ``look``, called in each, ends it by raising."""
    pause = _FIRST_PAUSE_SECONDS
    while not is_done():
        look()
        time.sleep(pause)
        pause = min(2 * pause, max(_LEAST_LONGEST_PAUSE_SECONDS, size / _MOST_CHECKS_PER_SECOND))


class BoardLostError(Exception):
    """The store is gone: whoever had it has ended."""


class Board:
    """A part of a job's store, by name; ``BoardLostError`` if that is gone. Each key is written by one rank alone."""

    def __init__(self, store: Any, name: str):
        self.store = dist.distributed_c10d.PrefixStore(name, store)

    def put(self, key: str, value: Any) -> None:
        """Write a value, plain JSON, in place of what was there."""
        with _lost():
            self.store.set(key, json.dumps(value))

    def get(self, key: str) -> Any:
        """Return a value; None if there is none. Does not wait for it."""
        with _lost():
            return json.loads(self.store.get(key)) if self.store.check([key]) else None

    def delete(self, key: str) -> None:
        """Remove a key that nobody else reads: a reader may have seen it, and would wait for it to come back."""
        with _lost():
            self.store.delete_key(key)


@contextmanager
def _lost() -> Iterator[None]:
    try:
        with native_call():
            yield
    except RuntimeError as error:
        raise BoardLostError(str(error).partition("\n")[0]) from error
