"""Waiting for a CUDA event, also while another thread captures a CUDA graph."""

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import torch

from d9d_tracker_kernels.device import gpu

_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED


def wait_for(event: torch.Event) -> None:
    """Wait until an event has happened.

    Under CUDA's default rules, a thread that asks for an event while another one captures a graph gets an error, and so
    does the capture, even if they have nothing to do with each other. So this thread has relaxed rules meanwhile: see
    ``cuThreadExchangeStreamCaptureMode`` in the manual of CUDA's driver.

    Args:
        event: Recorded outside of any capture.
    """
    mode = ctypes.c_int(_RELAXED)
    exchange = _exchange_capture_mode()
    exchange(ctypes.byref(mode))
    try:
        with gpu.device(event.device):  # or CUDA would set itself up on this thread's device, the first one
            event.synchronize()
    finally:
        exchange(ctypes.byref(mode))


@functools.cache
def _exchange_capture_mode() -> Callable[[Any], object]:
    library, function = "libcuda.so.1", "cuThreadExchangeStreamCaptureMode"
    if torch.version.hip:
        library, function = "libamdhip64.so", "hipThreadExchangeStreamCaptureMode"
    try:
        return getattr(ctypes.CDLL(library), function)
    except (OSError, AttributeError):  # on another system: then it is only captures that must not be waited during
        return lambda mode: None
