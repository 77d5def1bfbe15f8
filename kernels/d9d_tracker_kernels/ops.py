"""The operators `d9d_tracker::histogram_` and `histogram_many_`: registration, checks and dispatch.

They are opaque to the compiler and mutate the bank in place: Inductor calls them on the bank itself, without a copy.

Which row of the bank is counted into is data: `places`, int64 [n] on the device, says for each place which row it means
now, and -1 that it means none. So code that was compiled or captured with a place can be told to count elsewhere.

`Library.define` and `impl` cost about 2 us a call where `torch.library.custom_op` costs 12.
"""

import functools

import torch

from d9d_tracker_kernels import reference
from d9d_tracker_kernels.binning import CELLS, INTEGER, validate
from d9d_tracker_kernels.device import DISPATCH_KEY

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SUPPORTED_DTYPES = frozenset((*_FLOATS, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64))

_STATE = "Tensor(a!) counts, Tensor(b!) moments, Tensor(c!) partials, Tensor places, Tensor step"
_BINNING = "int every, int kind, int bins, float low, float high"

_library = torch.library.Library("d9d_tracker", "DEF")
for _schema in (
    f"histogram_(Tensor values, {_STATE}, int place, {_BINNING}) -> ()",
    f"histogram_many_(Tensor[] values, {_STATE}, int[] at, {_BINNING}) -> ()",
    "add_counts_(Tensor values, Tensor(a!) counts, Tensor(b!) moments, Tensor places, Tensor step, int place, "
    "int every) -> ()",
):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


def why_not_counted(values: torch.Tensor, is_traced: bool = False) -> str | None:
    """What keeps a tensor from being counted, and the next move: short, as the caller prefixes the name of the series.

    Args:
        values: What is to be counted.
        is_traced: Whether Dynamo asks, which has no sparse tensors, and lets no gradient hook ask for a layout.
    """
    if values.is_nested or (not is_traced and values.layout != torch.strided):
        kind = "a nested tensor" if values.is_nested else f"a tensor of layout {values.layout}"
        return f"cannot count {kind}: pass {_dense_move(values)}"
    if values.dtype in SUPPORTED_DTYPES:
        return None
    move = "pass abs(), or the real and imaginary parts as two series"
    if not values.is_complex():
        move = "pass dequantize()" if values.is_quantized else "convert it to a floating dtype that holds its values"
    return f"cannot count values of {values.dtype}: {move}"


def check_values(values: torch.Tensor, device: torch.device) -> None:
    """Refuses what cannot be counted.

    Args:
        values: What is to be counted.
        device: The device of the bank.

    Raises:
        TypeError: Complex, quantized, sparse or otherwise unsupported tensors.
        ValueError: A tensor on another device than the bank.
    """
    if (why_not := why_not_counted(values)) is not None:
        raise TypeError(why_not)
    if values.device != device:
        raise ValueError(f"values are on {values.device} but the histograms are on {device}: move one of them")


def _dense_move(values: torch.Tensor) -> str:
    """What of a tensor that is not strided can be counted instead."""
    if values.is_nested or values.layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc):
        return "its values()"
    return "its coalesce().values()" if values.layout == torch.sparse_coo else "its to_dense()"


def _check(values, counts, places, at, every, kind, bins, low, high) -> None:
    """Refuses a call as a whole, before anything is counted.

    Raises:
        TypeError: See `check_values`.
        ValueError: Tensors and places that do not pair up one to one, a place that the table lacks, a cadence below
            1, a binning that makes no sense, or a tensor on another device.
    """
    if len(values) != len(at):
        raise ValueError(f"{len(values)} tensors for {len(at)} places: pass one place for each tensor")
    if len(set(at)) != len(at):
        raise ValueError("a place is named twice: pass each series once a call")
    if at and not (min(at) >= 0 and max(at) < places.shape[0]):
        raise ValueError(f"at={at}: there are places 0 to {places.shape[0] - 1}")
    _check_settings(every, kind, bins, low, high)
    for tensor in values:
        check_values(tensor, counts.device)


@functools.lru_cache(maxsize=1024)
def _check_settings(every: int, kind: int, bins: int, low: float, high: float) -> None:
    if every < 1:
        raise ValueError(f"every={every}: pass 1 or more, the cadence in steps")
    validate(kind, bins, low, high)


def _rows(places: torch.Tensor, at: list[int]) -> list[int]:
    table = places.numpy()
    return [int(table[place]) for place in at]


def _histogram_cpu(values, counts, moments, partials, places, step, place, every, kind, bins, low, high) -> None:
    _histogram_many_cpu([values], counts, moments, partials, places, step, [place], every, kind, bins, low, high)


def _histogram_many_cpu(values, counts, moments, partials, places, step, at, every, kind, bins, low, high) -> None:
    _check(values, counts, places, at, every, kind, bins, low, high)
    now = int(step)
    if now % every == 0:
        for tensor, row in zip(values, _rows(places, at), strict=True):
            if row >= 0:
                reference.histogram_(tensor, counts, moments, now, row, kind, bins, low, high)


def _histogram_cuda(values, counts, moments, partials, places, step, place, every, kind, bins, low, high) -> None:
    from d9d_tracker_kernels import launch  # needs triton, which a CPU-only installation lacks

    _check([values], counts, places, [place], every, kind, bins, low, high)
    launch.launch(values, (counts, moments, partials, places, step), place, every, (kind, bins, low, high))


def _histogram_many_cuda(values, counts, moments, partials, places, step, at, every, kind, bins, low, high) -> None:
    from d9d_tracker_kernels import launch

    _check(values, counts, places, at, every, kind, bins, low, high)
    launch.launch_many(values, (counts, moments, partials, places, step), at, every, (kind, bins, low, high))


def _histogram_fake(values, counts, moments, partials, places, step, place, every, kind, bins, low, high) -> None:
    _check([values], counts, places, [place], every, kind, bins, low, high)


def _histogram_many_fake(values, counts, moments, partials, places, step, at, every, kind, bins, low, high) -> None:
    _check(values, counts, places, at, every, kind, bins, low, high)


def _check_counts(values, counts, places, place, every) -> None:
    if values.dim() != 1 or values.dtype.is_floating_point or not 1 <= values.numel() <= CELLS - 2:
        raise ValueError(f"counts are a vector of 1 to {CELLS - 2} integers, not {values.dtype} {list(values.shape)}")
    _check([values], counts, places, [place], every, INTEGER, values.numel(), 0.0, 0.0)


def _add_counts_cpu(values, counts, moments, places, step, place, every) -> None:
    _check_counts(values, counts, places, place, every)
    (row,) = _rows(places, [place])
    if row >= 0 and int(step) % every == 0:
        reference.add_counts_(values, counts, moments, int(step), row)


def _add_counts_cuda(values, counts, moments, places, step, place, every) -> None:
    from d9d_tracker_kernels import ready_counts

    _check_counts(values, counts, places, place, every)
    ready_counts.launch(values, (counts, moments, places, step), place, every)


def _add_counts_fake(values, counts, moments, places, step, place, every) -> None:
    _check_counts(values, counts, places, place, every)


for _name, *_functions in (
    ("add_counts_", _add_counts_cpu, _add_counts_cuda, _add_counts_fake),
    ("histogram_", _histogram_cpu, _histogram_cuda, _histogram_fake),
    ("histogram_many_", _histogram_many_cpu, _histogram_many_cuda, _histogram_many_fake),
):
    for _key, _function in zip(("CPU", DISPATCH_KEY, "Meta"), _functions, strict=True):
        _library.impl(_name, _function, _key)

histogram_ = torch.ops.d9d_tracker.histogram_.default
add_counts_ = torch.ops.d9d_tracker.add_counts_.default
histogram_many_ = torch.ops.d9d_tracker.histogram_many_.default
