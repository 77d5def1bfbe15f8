"""The kernels as Triton compiles, loads and launches them, executed on the CPU by the executor of tests/ptx.

Triton's own host half runs over a driver that takes notes: what it loads is the code, what it launches are the bytes of
the arguments. So what is executed is what a GPU of compute capability 9.0 would be given.
"""

import contextlib
import ctypes
import os
import random
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from executor import launch
from memory import GlobalMemory, Region
from program import Program, read

from d9d_tracker_kernels import histogram, ready_counts, scalar_kernels

from .machine import Machine

_LOAD = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
_LAUNCH = ctypes.CFUNCTYPE(
    None, ctypes.c_ulong, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_ulong, ctypes.POINTER(ctypes.c_void_p)
)
_FORMATS = {"64": "q", "32": "i", "f64": "d", "f32": "f"}
_REFUSED = 900  # CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
KERNELS = (
    histogram.count_one,
    histogram.count_many,
    ready_counts.add_counts,
    scalar_kernels.merge_values,
    scalar_kernels.empty_slots,
)


class DeviceMemory(GlobalMemory):
    """The memory of a device, for one launch."""

    def __init__(self, made: Machine, index: int):
        super().__init__()
        self._made, self._index = made, index

    def find(self, address: int, line: int) -> Region:
        for region in self.regions:
            if region.base <= address < region.base + region.data.size:
                return region
        found = self._made.memory.region(address, self._index)
        if found is None:
            return super().find(-1, line)
        base, data = found
        region = Region(f"{base:#x}", base, data.numpy(), is_written=True, is_writable=True, are_reads_races=False)
        self.regions.append(region)
        return region


class Notes:
    """What the driver is told.

    Args:
        made: Where the launches become work.

    Attributes:
        loaded: The names of the kernels that were loaded, in order.
        refused: Why loads were.
    """

    def __init__(self, made: Machine):
        self._made, self._codes, self._programs = made, {}, {}
        self.loaded: list[str] = []
        self.refused: list[str] = []
        self.callbacks = _LOAD(self._load), _LAUNCH(self._launch)

    def _load(self, module: int, code: int) -> int:
        try:
            self._made.refuse_in_captures("a load of a kernel")
        except RuntimeError as error:
            self.refused.append(str(error))
            return _REFUSED
        # Its length, by the ELF header: where the table of sections begins, the size of an entry, how many there are.
        sections, size, number = struct.unpack("<Q10xHH", ctypes.string_at(code + 40, 22))
        self._codes[module] = ctypes.string_at(code, sections + size * number)
        return 0

    def _launch(self, module: int, blocks: int, threads: int, shared: int, number: int, places: Any) -> None:
        program, formats = self._program(module)
        values = [
            struct.unpack(f"<{one}", ctypes.string_at(place, struct.calcsize(one)))[0] if (place := places[at]) else 0
            for at, one in enumerate(formats)
        ]
        index = number >> 8
        work = lambda: launch(program, DeviceMemory(self._made, index), values, threads, blocks, random.Random(module))  # noqa: E731 as short as its name
        self._made.enqueue(self._made.current(index), work)

    def _program(self, module: int) -> tuple[Program, list[str]]:
        if module not in self._programs:
            code = self._codes[module]
            kernels = [
                k for function in KERNELS for cache in function.device_caches.values() for k in cache[0].values()
            ]
            kernel = next(kernel for kernel in kernels if kernel.asm["cubin"].startswith(code))
            self.loaded.append(kernel.metadata.name)
            ptx = kernel.asm["ptx"]
            types = re.findall(r"\.param \.\w*?(f?(?:64|32))\b", ptx.split("(", 1)[1].split(")", 1)[0])
            self._programs[module] = read(ptx, kernel.metadata.shared), [_FORMATS[one] for one in types]
        return self._programs[module]


@contextlib.contextmanager
def compiled_kernels(made: Machine, library: ctypes.CDLL) -> Iterator[Notes]:
    """Have Triton's launches executed.

    Args:
        made: The machine that is simulated.
        library: Its driver.
    """
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime import driver

    notes = Notes(made)
    library.sim_listen(*notes.callbacks)
    for kernel in KERNELS:
        kernel.device_caches.clear()
    try:
        with mock.patch.dict(os.environ, TRITON_LIBCUDA_PATH=str(Path(library._name).parent)):
            driver.set_active(CudaDriver())
            yield notes
    finally:
        driver.reset_active()
        for kernel in KERNELS:
            kernel.device_caches.clear()
