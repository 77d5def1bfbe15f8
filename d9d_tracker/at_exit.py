"""What must still be done when the interpreter exits, in time: a run that nobody closed."""

import atexit
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from .log import logger

_due: dict[int, Callable[[], Any]] = {}
_is_registered = False
_is_exiting = False


def add(key: object, close: Callable[[], Any]) -> None:
    """Have what ``key`` stands for closed at exit, unless it is removed before, on the main thread, the latest first.

    ``close`` has a bound of its own, and it or the caller keeps the key alive.
    """
    global _is_registered
    if not _is_registered:
        _is_registered = True
        # Before the other threads are joined or frozen, and while a backend's SDK may still start threads of its own;
        # concurrent.futures does the same.
        register = getattr(threading, "_register_atexit", atexit.register)
        register(_close_all)
    _due[id(key)] = close


def remove(key: object) -> None:
    """Forget what is closed already."""
    _due.pop(id(key), None)


def uncaught() -> BaseException | None:
    """Return the exception that ends the interpreter, if it is ending by one."""
    return getattr(sys, "last_value", None) if _is_exiting and not hasattr(sys, "ps1") else None


def _close_all() -> None:
    global _is_exiting
    _is_exiting = True
    while _due:
        _, close = _due.popitem()
        try:
            close()
        except Exception:
            logger.exception("a run could not be closed at exit")


os.register_at_fork(after_in_child=_due.clear)  # what the parent opened, the parent closes
