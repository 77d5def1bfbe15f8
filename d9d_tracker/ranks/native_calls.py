"""No thread is inside of C++ code when the interpreter ends: coming back from there, it would abort the process."""

import atexit
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SECONDS = 5.0

_changed = threading.Condition()
_inside = 0
_is_ending = False


@contextmanager
def native_call() -> Iterator[None]:
    """Enclose a call that lets go of the interpreter; once that ends, threads that would begin one wait for good."""
    global _inside
    with _changed:
        while _is_ending and threading.current_thread() is not threading.main_thread():
            _changed.wait()
        _inside += 1
    try:
        yield
    finally:
        with _changed:
            _inside -= 1
            _changed.notify_all()


def _end() -> None:
    global _is_ending
    with _changed:
        _is_ending = True
        _changed.wait_for(lambda: not _inside, _SECONDS)


def _begin() -> None:
    global _changed, _inside, _is_ending
    _changed, _inside, _is_ending = threading.Condition(), 0, False


atexit.register(_end)
os.register_at_fork(after_in_child=_begin)
