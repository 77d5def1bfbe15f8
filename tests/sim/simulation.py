"""``simulated(seed)``: within it, torch.cuda is a machine of two GPUs made of software."""

import contextlib
import ctypes
import functools
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from libraries import built

from d9d_tracker.devices import event_wait
from d9d_tracker_kernels import launch

from . import machine as machines
from .kernels import KERNELS, Kernel
from .machine import Event, Graph, Machine, Stream, machine
from .tensors import Memory, Mode, on_all_threads, tensor

MULTIPROCESSORS = 2
_look_for_the_driver = event_wait._exchange_capture_mode.__wrapped__


@functools.cache
def library() -> ctypes.CDLL:
    """Build and load the library that stands for the driver's, and for torch's device guard."""
    import triton

    tritons = Path(triton.__file__).parent
    flags = "-Wl,-soname,libcuda.so.1", f"-I{tritons}/backends/nvidia/include"
    path = built(Path(__file__).with_name("driver.cpp"), "libcuda.so.1", *flags)
    with contextlib.suppress(FileExistsError):
        path.with_suffix("").symlink_to(path.name)  # as a linker looks for it
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


@contextlib.contextmanager
def simulated(seed: int, eagerness: float | None = None, *, compiled: bool = False) -> Iterator[Machine]:
    """Have two GPUs.

    Args:
        seed: Decides the order of all that streams and events leave open.
        eagerness: How likely the device works whenever work is issued; by the seed if None.
        compiled: Whether kernels are Triton's and executed, see compiled.py, which is some thousand times slower.
    """
    made = Machine(seed, (0.05, 0.3, 0.7)[seed % 3] if eagerness is None else eagerness, library().sim_mode)
    made.memory, made.loaded, made.launches = Memory(), set(), []
    machines._machines.append(made)
    patches = [
        *((torch.cuda, name, value) for name, value in _torch_cuda(made).items()),
        *((module, name, Kernel(name, function)) for module, name, function in KERNELS if not compiled),
        (torch, "tensor", tensor),
        (torch._C, "_host_emptyCache", lambda: None),
        (torch.cuda.graphs, "graph_pool_handle", lambda: (0, 1)),
        (torch.cuda.graph, "default_capture_stream", None),
        (launch, "INLINE_PTX", True),
        # What the process knows already: plans for other memory, and perhaps that there is no driver.
        (launch, "_plans", type(launch._plans)()),
        (event_wait, "_exchange_capture_mode", functools.cache(_look_for_the_driver)),
    ]
    try:
        with contextlib.ExitStack() as stack:
            for target, name, value in patches:
                stack.enter_context(mock.patch.object(target, name, value, create=True))
            stack.enter_context(on_all_threads(Mode))
            # Autograd works on the caller's thread: it starts those of devices before a process's first backward only.
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            for enter, leave in (("sim_guard", "sim_unguard"), ("sim_swap_hooks", "sim_swap_hooks")):
                stack.callback(library()[leave], True)
                library()[enter](True)
            if compiled:
                from .compiled import compiled_kernels  # whose executor lies beside the tests of the kernels' code

                made.notes = stack.enter_context(compiled_kernels(made, library()))
            # A module's parameters become other tensors when it moves, as those of its tensors that are subclasses do.
            stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
            torch.__future__.set_overwrite_module_params_on_conversion(True)
            yield made
            made.synchronize()
    finally:
        machines._machines.remove(made)


def _torch_cuda(made: Machine) -> dict[str, Any]:
    properties = types.SimpleNamespace(
        multi_processor_count=MULTIPROCESSORS, warp_size=32, name="a GPU made of software", major=9, minor=0
    )
    return {
        "_lazy_init": lambda: None,
        "is_initialized": lambda: True,
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "current_device": lambda: made.device,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: properties.name,
        "device": made.on_device,
        "device_of": made.on_device,
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "stream": made.on_stream,
        "current_stream": made.current,
        "default_stream": lambda device=None: Stream(device, 0),
        "is_current_stream_capturing": made.is_capturing,
        "synchronize": made.synchronize,
        "empty_cache": lambda: None,
        "set_sync_debug_mode": lambda mode: setattr(made, "sync_debug", mode),
        "get_sync_debug_mode": lambda: made.sync_debug,
        "_sleep": made.sleep,
        "memory_stats": lambda device=None: dict(made.statistics),
        "reset_peak_memory_stats": lambda device=None: made.statistics.update(
            {name: made.statistics[name.replace("peak", "current")] for name in made.statistics if "peak" in name}
        ),
    }


__all__ = ["library", "machine", "simulated"]
