"""``install()``: a device ``privateuseone`` for the rest of the process, like those that have no bank of their own.

Its memory is the host's. It has no float64, refuses what the tracker may not use there, and counts the host's waits.
"""

import contextlib
import ctypes
import functools
import sys
from pathlib import Path

import torch
from libraries import built

import d9d_tracker

from .operators import OPERATORS

NAME = "privateuseone"  # names of devices have no digits
_PACKAGES = (str(Path(d9d_tracker.__file__).parent), "d9d_tracker_kernels")
_CALLERS = "commands", "skipped_steps.py"  # which run what is a training's
# Between who asks and what is asked for.
_BETWEEN = (str(Path(torch.__file__).parent), __file__, str(Path(__file__).with_name("plugin.py")))
_LISTENER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p)


class Module:
    """What ``torch.privateuseone`` is."""

    is_available = is_initialized = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 2)
    current_device = staticmethod(lambda: 0)
    current_stream = staticmethod(lambda device=None: None)
    device = stream = staticmethod(lambda one: contextlib.nullcontext())
    synchronize = staticmethod(lambda device=None: None)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = staticmethod(lambda seed: None)
    get_rng_state = staticmethod(lambda device=None: torch.empty(0, dtype=torch.uint8, device="cpu"))
    set_rng_state = staticmethod(lambda state, device=None: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.float16, torch.bfloat16])


def is_of_the_tracker() -> bool:
    """Tell whether the tracker asks torch for what is about to be done, and not a training."""
    frame = sys._getframe(0)
    while frame is not None and frame.f_code.co_filename.startswith(_BETWEEN):
        frame = frame.f_back
    file = "" if frame is None else frame.f_code.co_filename
    return any(package in file for package in _PACKAGES) and not any(other in file for other in _CALLERS)


@_LISTENER
def _listen(name: bytes) -> int:
    """Tell whether an operator may run: whatever a training asks for, and of the tracker what is on its list."""
    return name.decode() in OPERATORS or not is_of_the_tracker()


@functools.cache
def install() -> ctypes.CDLL:
    """Build and load it, once a machine and once a process."""
    library = ctypes.CDLL(str(built(Path(__file__).with_name("device.cpp"), "device.so")))
    library.device_install()
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, Module)
    library.device_listen(_listen)
    return library


def waits() -> int:
    """Return how often the host has waited for the device."""
    return install().device_waits()
