"""Waiting for a CUDA event, also while a CUDA graph is captured."""

import contextlib
import ctypes
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from d9d_tracker.log import logger
from d9d_tracker_kernels.device import gpu

_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED


@contextlib.contextmanager
def relaxed() -> Iterator[bool]:
    """Let this thread do what would break a capture, of its own or of another thread: wait, allocate, destroy.

    Under CUDA's default rules, a thread that asks for an event while another one captures a graph gets an error, and so
    does the capture, even if they have nothing to do with each other. See ``cuThreadExchangeStreamCaptureMode`` in the
    manual of CUDA's driver.

    Yields:
        Whether it may; not where the driver's library is not found.
    """
    exchange = _exchange_capture_mode()
    if exchange is None:
        yield False
        return
    mode = ctypes.c_int(_RELAXED)
    exchange(ctypes.byref(mode))
    try:
        yield True
    finally:
        exchange(ctypes.byref(mode))


def wait_for(event: torch.Event) -> None:
    """Wait until an event has happened.

    Args:
        event: Recorded outside of any capture.
    """
    with relaxed(), gpu.device(event.device):  # or CUDA would set itself up on this thread's device, the first one
        event.synchronize()


def wait_until(conditions: Iterable[Callable[[], bool]], timeout: float) -> None:
    """Wait until all of them hold, so many seconds at most; ``RuntimeError`` if the device does not answer."""
    deadline = time.monotonic() + timeout
    for holds in conditions:
        while not holds():
            if time.monotonic() > deadline:
                raise RuntimeError(f"the device has not answered for {timeout:g} s")
            time.sleep(1e-3)


@functools.cache
def _exchange_capture_mode() -> Callable[[Any], object] | None:
    library, function = "libcuda.so.1", "cuThreadExchangeStreamCaptureMode"
    if torch.version.hip:
        library, function = "libamdhip64.so", "hipThreadExchangeStreamCaptureMode"
    try:
        return getattr(ctypes.CDLL(_loaded(library)), function)
    except (OSError, AttributeError) as error:
        logger.warning(
            "%s is not found (%s): a window that arrives while a CUDA graph is captured may break the capture; call "
            "flush() before capturing",
            library,
            error,
        )
        return None


def _loaded(library: str) -> str:
    """Return the file that torch has loaded of a library: a wheel may bring its own, and another has other rules."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            path = line.partition("/")[2]
            if path.rpartition("/")[2].startswith(library):
                return f"/{path}"
    return library
