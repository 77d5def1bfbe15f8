"""Tensors of device cuda whose memory is the host's, and whose operators are work on streams."""

import bisect
import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .machine import machine

_HOST_READS = {"aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select"}


class Memory:
    """All memory of a simulation, pinned and of devices; none is freed before it ends, so that addresses are unique."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # the collector drives the device beside the training
        self._bases: list[int] = []
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._devices: dict[int, int | None] = {}

    def add(self, tensor: torch.Tensor, device: int | None) -> None:
        """Keep a tensor's memory: a device's, or pinned memory of the host."""
        storage = tensor.untyped_storage()
        with self._lock:
            if storage.nbytes() and storage.data_ptr() not in self._storages:
                bisect.insort(self._bases, storage.data_ptr())
                self._storages[storage.data_ptr()] = storage
                self._devices[storage.data_ptr()] = device

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return self._devices.get(tensor.untyped_storage().data_ptr(), 0) is None or tensor.numel() == 0

    def bytes_at(self, address: int, size: int, device: int) -> torch.Tensor:
        """Return what lies at an address of a device, as uint8, sharing memory.

        Raises:
            RuntimeError: If that is no memory of the device.
        """
        base, whole = self.region(address, device) or (0, torch.empty(0))
        if address + size > base + whole.numel():
            raise RuntimeError(f"an illegal memory access: {size} bytes at {address:#x} of cuda:{device}")
        return whole[address - base : address - base + size]

    def region(self, address: int, device: int) -> tuple[int, torch.Tensor] | None:
        """Return the base and the bytes of the memory of a device that an address lies in; None if it is none."""
        with self._lock:
            where = bisect.bisect_right(self._bases, address) - 1
            if where < 0 or self._devices[self._bases[where]] != device:
                return None
            base = self._bases[where]
            return base, torch.empty(0, dtype=torch.uint8).set_(self._storages[base])


class CudaTensor(torch.Tensor):
    """A tensor on a device that is not there; ``hidden`` is what its memory will hold."""

    hidden: torch.Tensor

    @staticmethod
    def __new__(cls, hidden: torch.Tensor, index: int) -> "CudaTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            hidden.size(),
            strides=hidden.stride(),
            storage_offset=hidden.storage_offset(),
            dtype=hidden.dtype,
            device=torch.device("cuda", index),
        )
        made.hidden = hidden
        machine().memory.add(hidden, index)
        return made

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride] torch's has a keyword
        return f"CudaTensor{tuple(self.shape)}"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # pyright: ignore[reportIncompatibleMethodOverride] untyped
        return dispatch(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        if id(self) not in memo:
            made = self.detach().clone().requires_grad_(self.requires_grad)
            memo[id(self)] = torch.nn.Parameter(made, self.requires_grad) if self._is_param else made
        return memo[id(self)]

    def data_ptr(self) -> int:
        return self.hidden.data_ptr()

    def tolist(self) -> Any:
        machine().wait_for_operator("tolist")
        return self.hidden.tolist()

    def is_pinned(self, device: Any = None) -> bool:
        return False


class Mode(TorchDispatchMode):
    """Sees what is made on a device: no tensor of it is among the arguments."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


def hidden(value: Any) -> Any:
    """Return a tensor's memory; of a list or tuple, as its like."""
    if isinstance(value, CudaTensor):
        return value.hidden
    return type(value)(map(hidden, value)) if type(value) in (list, tuple) else value


def _wrapped(value: Any, index: int) -> Any:
    if isinstance(value, torch.Tensor):
        return CudaTensor(value, index)
    return type(value)(_wrapped(one, index) for one in value) if isinstance(value, list | tuple) else value


def _first_on_device(values: Any) -> "CudaTensor | None":
    for value in values:
        found = value if isinstance(value, CudaTensor) else None
        if type(value) in (list, tuple):
            found = _first_on_device(value)
        if found is not None:
            return found
    return None


def dispatch(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Do what an operator does: as work on the current stream if a device has a part in it."""
    found = _first_on_device((*args, *kwargs.values()))
    device = kwargs.get("device")
    target = None if device is None else torch.device(device)
    if found is None and (target is None or target.type != "cuda"):
        return _on_host(func, args, kwargs)
    with torch.inference_mode(False), torch.no_grad():
        index = machine().index_of(target) if found is None else found.device.index
        if func.namespace == "d9d_tracker":
            return func._op_dk(torch._C.DispatchKey.CUDA, *args, **kwargs)
        return _on_device(func, args, kwargs, index, target)


def _on_host(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    name = func.name()
    if name == "aten::is_pinned":
        return machine().memory.is_pinned(args[0])
    if kwargs.get("pin_memory") or name == "aten::_pin_memory":
        made = func(*args, **{**kwargs, "pin_memory": False}) if kwargs.get("pin_memory") else args[0].clone()
        machine().memory.add(made, None)
        return made
    return func(*args, **kwargs)


def _on_device(func: Any, args: tuple, kwargs: dict[str, Any], index: int, target: torch.device | None) -> Any:
    name, stream = func.name(), machine().current(index)
    given, named = hidden(args), {key: hidden(value) for key, value in kwargs.items()}
    if name in _HOST_READS:
        machine().wait_for_operator(name)
        return _wrapped(func(*given, **named), index)
    if name == "aten::record_stream":
        return None
    if name == "aten::_to_copy" and target is not None:
        return _move(args[0], target, kwargs)
    if name == "aten::copy_" and len({args[0].device, args[1].device}) > 1:
        _copy(args[0], args[1], args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        return args[0]
    if target is not None:
        named["device"] = "cpu"
        index, stream = machine().index_of(target), machine().current(target)
    written, is_view, returns = _effects(func)
    if is_view:  # no work
        return _wrapped(func(*given, **named), index)
    if written or not returns:
        machine().enqueue(stream, lambda: func(*given, **named))
        results = [kwargs[key] if key in kwargs else args[place] for place, key in written]
        return None if not returns else results[0] if returns == 1 else tuple(results)
    made = func(*given, **named)  # for the shapes; what it computes from is not there yet

    def compute() -> None:
        for room, result in zip(_leaves(made), _leaves(func(*given, **named)), strict=True):
            room.copy_(result)

    machine().enqueue(stream, compute)
    return _wrapped(made, index)


@functools.cache
def _effects(func: Any) -> tuple[list[tuple[int, str]], bool, int]:
    """Return which arguments an operator writes to, whether it returns views, and how many results it has."""
    schema = func._schema
    aliases = [
        (place, one.name) for place, one in enumerate(schema.arguments) if one.alias_info and one.alias_info.is_write
    ]
    is_view = not aliases and any(result.alias_info is not None for result in schema.returns)
    return aliases, is_view, len(schema.returns)


def _leaves(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [leaf for one in value for leaf in _leaves(one)] if isinstance(value, list | tuple) else []


def _move(source: torch.Tensor, target: torch.device, kwargs: dict[str, Any]) -> torch.Tensor:
    dtype = kwargs.get("dtype") or source.dtype
    made: torch.Tensor = torch.empty(source.shape, dtype=dtype, device="cpu")
    if target.type == "cuda":
        made = CudaTensor(made, machine().index_of(target))
    _copy(made, source, bool(kwargs.get("non_blocking")))
    return made


def _copy(to: torch.Tensor, source: torch.Tensor, non_blocking: bool) -> None:
    """Between host and device, or two devices. Pinned memory is read and written when it is this copy's turn."""
    on_device = to if isinstance(to, CudaTensor) else source
    stream, memory = machine().current(on_device.device), machine().memory
    there, here = hidden(to), hidden(source)
    if isinstance(to, CudaTensor) and isinstance(source, CudaTensor):
        # As torch does: by the source's stream, and both streams wait for each other.
        other = machine().current(source.device)
        other.wait_stream(stream)
        machine().enqueue(other, lambda: there.copy_(here))
        stream.wait_stream(other)
        return
    host = source if isinstance(to, CudaTensor) else to
    is_free = non_blocking and memory.is_pinned(host)
    if is_free:
        machine().enqueue(stream, lambda: there.copy_(here))
    elif isinstance(to, CudaTensor):
        machine().wait_for_operator("a blocking or pageable copy to the device")
        here = here.clone()
        machine().enqueue(stream, lambda: there.copy_(here))
    else:
        machine().wait_for_operator("a blocking or pageable copy to the host")
        there.copy_(here)


@contextlib.contextmanager
def on_all_threads(mode: Any) -> Iterator[None]:
    """Have a mode also on threads that are started meanwhile."""
    run = threading.Thread.run

    def with_mode(thread: threading.Thread) -> None:
        with mode():
            run(thread)

    threading.Thread.run = with_mode
    try:
        with mode():
            yield
    finally:
        threading.Thread.run = run


_tensor = torch.tensor


def tensor(data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, pin_memory: bool = False):
    """Stand for ``torch.tensor``, which no dispatch mode sees."""
    made = _tensor(data, dtype=dtype, device="cpu")
    if device is not None and torch.device(device).type == "cuda":
        stream, made = machine().current(device), CudaTensor(made, machine().index_of(device))
        if machine().capture_of(stream) is not None or machine().sync_debug in ("error", 2):
            machine().wait_for_operator("torch.tensor on the device")
    elif pin_memory:
        machine().memory.add(made, None)
    return made.requires_grad_(requires_grad)
