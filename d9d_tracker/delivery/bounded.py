"""Waits for a delivery, whose backlog may be on a disk that hangs."""

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from d9d_tracker.log import logger

_DISK_SECONDS = 30.0

T = TypeVar("T")


def bounded(seconds: float, otherwise: T, wait: Callable[..., T], *arguments: Any) -> T:
    """Wait some seconds for a delivery, and longer, but not for ever, for its disk, on a thread of its own."""
    found: queue.SimpleQueue[T] = queue.SimpleQueue()
    thread = threading.Thread(target=lambda: found.put(wait(*arguments)), name="d9d_tracker disk", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no thread is left, or the interpreter is on its way out
        return wait(*arguments)
    with suppress(queue.Empty):
        return found.get(timeout=seconds + _DISK_SECONDS)
    words = "the disk of the backlog has hung for %g s: what is not with the backend would be lost by a kill"
    logger.error(words, _DISK_SECONDS)
    return otherwise
