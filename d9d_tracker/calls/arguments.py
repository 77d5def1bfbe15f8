"""What can be logged, and what is refused: the same in eager code and under trace.

Code under trace cannot format everything (a symbolic shape, an exception), so the messages are made of constants.
"""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch

from d9d_tracker.bank.placement import is_distributed, local_scalar, local_share
from d9d_tracker.bank.scalars import Number
from d9d_tracker.bank.typed_tensors import typed_scalar, typed_share
from d9d_tracker.errors import TrackerTypeError, TrackerValueError, described, fail
from d9d_tracker.lazy_torch import assume_constant_result
from d9d_tracker.log import warn_once
from d9d_tracker.series.series import ContextItems, Named, Reduction, label
from d9d_tracker.tracing import FakeTensor, hangs_on_data, is_beyond_int64
from d9d_tracker_kernels.device import GPU, gpu
from d9d_tracker_kernels.ops import why_not_counted

_NO_NUMBERS = (str, bytes, dict, list, tuple, set)


def check_names(names: Sequence[object]) -> None:
    """Refuse names that are not text."""
    for name in names:
        if not isinstance(name, str):
            fail(TrackerTypeError, f"the name of a series is a str, not {type(name).__name__}; the name comes first")
        if not name:
            fail(TrackerValueError, "series '': the name is empty; give the series a name")


def check_mapping(method: str, values: object) -> None:
    """Refuse what has no names."""
    if not isinstance(values, Mapping):
        fail(TrackerTypeError, f"{method} takes a mapping of names to values, not {type(values).__name__}")


def numbers_among(names: Sequence[object], values: Sequence[object]) -> list[int]:
    """Return which values of a mapping are not None, text or a collection; the others are named once."""
    used: list[int] = []
    for index, value in enumerate(values):
        # A tensor is told first: compiled code guards on all that is asked, at each call.
        if not isinstance(value, torch.Tensor) and (value is None or isinstance(value, _NO_NUMBERS)):
            _say_left_out(str(names[index]), type(value).__name__)
        else:
            used.append(index)
    return used


@assume_constant_result
def _say_left_out(name: str, kind: str) -> None:
    words = "scalars: %r is left out, now and later: it is a %s, not a number"
    warn_once(("left out", name), words, name, kind)


def check_number(
    name: str | Named, items: ContextItems, value: object, device: torch.device, reduce: Reduction = "mean"
) -> Number:
    """Return a value as a Python number, or a tensor of one element: on a device, or on one without a bank."""
    if isinstance(value, torch.Tensor):
        return _check_element(name, items, value, device, reduce)
    if torch.compiler.is_compiling():
        if isinstance(value, int) and not isinstance(value, bool) and is_beyond_int64(value):
            fail(
                TrackerValueError, f"{label(name, items)}: an int of this size does not fit into int64; pass float(...)"
            )
        if isinstance(value, bool | int | float):
            return value
    elif isinstance(value, Real | np.bool_):
        return _check_size(name, items, value, device)
    if isinstance(value, np.ndarray):  # to Dynamo, all of NumPy's numbers are arrays
        if not torch.compiler.is_compiling() and value.dtype.kind not in "biufc":
            fail(TrackerTypeError, f"{label(name, items)}: a NumPy array of {value.dtype} holds no number")
        return _check_element(name, items, torch.as_tensor(value, device="cpu"), device, reduce)
    received = described(value) + ("; pass float(...)" if isinstance(value, str) else "")
    fail(TrackerTypeError, f"{label(name, items)}: a scalar is a number or a tensor of one element, not {received}")


def _check_size(name: str | Named, items: ContextItems, value: Any, device: torch.device) -> float:
    if device.type == GPU and gpu.is_current_stream_capturing():
        fail(
            TrackerValueError,
            f"{label(name, items)}: the value is a Python number, which every replay of the CUDA graph that is being "
            f"captured would log again as it is now; pass a tensor on {device}, or log it outside of the capture",
        )
    if isinstance(value, np.timedelta64):
        hint = "a time, not a number; divide it by np.timedelta64(1, 's')"
        fail(TrackerTypeError, f"{label(name, items)}: {value!r} is {hint}")
    try:
        return float(value)
    except OverflowError:
        fail(TrackerValueError, f"{label(name, items)}: an int of this size does not fit into float64; log its log")


def _check_element(
    name: str | Named, items: ContextItems, value: torch.Tensor, device: torch.device, reduce: Reduction
) -> Number:
    is_traced = torch.compiler.is_compiling()
    if value.numel() != 1:
        shape = f"{value.dim()} dimensions" if is_traced else f"shape {tuple(value.shape)}"
        fail(
            TrackerValueError,
            f"{label(name, items)}: a scalar has one element, not {shape}; reduce it first, with .mean() for example, "
            "or log its distribution with bins",
        )
    if value.is_complex():
        fail(TrackerTypeError, f"{label(name, items)}: {value.dtype} is not real; log .abs() or its parts")
    if not is_traced and (value.layout != torch.strided or value.is_nested or value.is_quantized):
        try:
            return float(value.item())
        except RuntimeError:
            fail(TrackerTypeError, f"{label(name, items)}: cannot read a number of layout {value.layout}; pass a float")
    try:
        if is_distributed(value):
            value = local_scalar(value, reduce)
        elif not is_traced:  # where no tensor has a type
            value = typed_scalar(value, reduce)
    except TypeError:
        fail(
            TrackerTypeError,
            f"{label(name, items)}: with reduce={reduce!r}, ranks cannot make a whole of this part of a sum, or shard, "
            "when their windows meet; bring it together first, by .full_tensor() or all_reduce, on each of these ranks",
        )
    fake = not is_traced and isinstance(value, FakeTensor)
    if fake or value.device.type == "meta":
        kind = "FakeTensor" if fake else "tensor"
        fail(
            TrackerValueError, f"{label(name, items)}: a {kind} on {value.device} has no value; log what it stands for"
        )
    if value.device == device:
        return value
    if is_traced:
        return value.to(device, non_blocking=True) if device.type == GPU else value
    if GPU in (device.type, value.device.type) and gpu.is_current_stream_capturing():
        where = "the CPU" if value.is_cpu else value.device
        fail(
            TrackerValueError,
            f"{label(name, items)}: the value is on {where}, where a replay of the CUDA graph that is being "
            f"captured would not read it again; move it to {device} first, or log it outside of the capture",
        )
    if value.device.type == GPU == device.type:
        return value.to(device, non_blocking=True)
    if device.type == GPU or value.device.type == "cpu":
        return float(value.item())
    return value


def check_population(
    name: str | Named, items: ContextItems, values: object, device: torch.device
) -> tuple[torch.Tensor, bool]:
    """Return the part of a population that can be counted on a device, and whether this process counts it."""
    if not isinstance(values, torch.Tensor):
        kind = type(values).__name__
        fail(TrackerTypeError, f"{label(name, items)}: bins takes a tensor, not {kind}; pass torch.as_tensor(...)")
    if not torch.compiler.is_compiling() and isinstance(values, FakeTensor):
        fail(TrackerValueError, f"{label(name, items)}: a FakeTensor has no values; log what it stands for")
    try:
        values, counts = local_share(values) if is_distributed(values) else (values, typed_share(values))
    except TypeError:
        fail(
            TrackerTypeError,
            f"{label(name, items)}: the values are parts of a sum, which exists only after a reduction across ranks; "
            "reduce them first, by .redistribute(placements=[Replicate()]) or all_reduce, on each of these ranks",
        )
    if (why_not := why_not_counted(values, torch.compiler.is_compiling())) is not None:
        fail(TrackerTypeError, f"{label(name, items)}: {why_not}")
    if values.device != device and _refuses(values.device, device):
        fail(
            TrackerValueError,
            f"{label(name, items)}: the values are on {values.device}, and what runs again without Python counts on "
            f"{device} alone; move them there, or log them in eager code",
        )
    return values, counts


def _refuses(device: torch.device, bank: torch.device) -> bool:
    if device.type == "meta" or GPU not in (device.type, bank.type):
        return device.type == "meta"
    return bank.type == GPU if torch.compiler.is_compiling() else gpu.is_current_stream_capturing()


def check_counts(name: str, items: ContextItems, values: object, device: torch.device) -> tuple[torch.Tensor, bool]:
    """Return a vector of counts as it lies on a device, and whether this process adds it."""
    # What is neither is a shard, in one of several ways that do not all say so.
    if is_distributed(values) and not all(one.is_replicate() or one.is_partial() for one in values.placements):
        fail(TrackerTypeError, f"{label(name, items)}: the counts are split across ranks; pass .full_tensor()")
    vector, counts = check_population(name, items, values, device)
    if vector.dtype.is_floating_point or vector.dtype == torch.bool:
        fail(TrackerTypeError, f"{label(name, items)}: counts are integers, not {vector.dtype}; pass .to(torch.int64)")
    if vector.dim() != 1:
        fail(TrackerValueError, f"{label(name, items)}: counts are a vector, not {vector.dim()}-d; log rows apart")
    if torch.compiler.is_compiling() and hangs_on_data(vector.shape[0]):
        fail(
            TrackerValueError,
            f"{label(name, items)}: how many counts there are hangs on the data, and compiled code has to know; count "
            "into a tensor of fixed length, with torch.zeros(n).scatter_add(...) for example",
        )
    return vector, counts
