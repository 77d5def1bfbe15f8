"""Waits for a delivery, whose backlog may be on a disk that hangs."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from d9d_tracker.log import logger

_DISK_SECONDS = 30.0

T = TypeVar("T")


def bounded(seconds: float, otherwise: T, ask: Callable[..., T], *arguments: Any) -> T:
    """Wait some seconds for a delivery, and longer, but not for ever, for its disk, on a thread of its own.

    Args:
        seconds: How long the question itself may take.
        otherwise: What is returned if the disk hangs.
        ask: The question, which is asked to its end in any case.
        *arguments: Its arguments.

    Raises:
        BaseException: What ``ask`` raises.
    """
    found: Future[T] = Future()

    def answer() -> None:
        try:
            found.set_result(ask(*arguments))
        except BaseException as error:
            found.set_exception(error)

    try:
        threading.Thread(target=answer, name="d9d_tracker disk", daemon=True).start()
    except RuntimeError:  # no thread is left, or the interpreter is on its way out
        return ask(*arguments)
    if wait((found,), seconds + _DISK_SECONDS).done:
        return found.result()
    words = "the disk of the backlog has hung for %g s: what is not with the backend would be lost by a kill"
    logger.error(words, _DISK_SECONDS)
    return otherwise
