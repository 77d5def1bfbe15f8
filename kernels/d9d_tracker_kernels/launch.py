"""Launching the Triton kernels: tile shapes, binning constants, and the tables of multi-tensor launches."""

import functools
import math
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from d9d_tracker_kernels import histogram
from d9d_tracker_kernels.binning import EXPONENTIAL, INTEGER, linear_width, mantissa_bits, round_to_float32
from d9d_tracker_kernels.device import GPU, IS_AMD, PROGRAMS_PER_MULTIPROCESSOR, gpu, is_rdna, warp_size
from d9d_tracker_kernels.reference import in_storage_order

# NVIDIA GPUs count by inline PTX, see shared_atomics.py.
INLINE_PTX = torch.version.cuda is not None

THREADS = 512
_ELEMENTS_PER_THREAD = 16
ELEMENT_TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.uint8: tl.uint8,
    torch.int8: tl.int8,
    torch.int16: tl.int16,
    torch.int32: tl.int32,
    torch.int64: tl.int64,
}
_FLOAT64_DTYPES = (torch.float64, torch.int32, torch.int64)

# Segments of a multi-tensor launch for each program that can run at once: enough for an even load at the end.
_SEGMENTS_PER_PROGRAM = 4
_MOST_PLANS = 128

# Counts, moments, partials, places and step.
State = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
Binning = tuple[int, int, float, float]  # kind, bins, low and high


@dataclass
class _Plan:
    """How a set of tensors is divided among programs, and where they lay and were logged last time.

    Attributes:
        table: int64 [programs, SEGMENT_WIDTH], on the device. Depends on sizes only.
        tensors: int64 [tensors, TENSOR_WIDTH], on the device.
        rows: What `tensors` holds, row by row.
        is_captured: Whether a CUDA graph reads `table`, which must then never be freed.
    """

    table: torch.Tensor
    tensors: torch.Tensor
    rows: tuple[int, ...] = ()
    is_captured: bool = False


# By what the table depends on, and by stream: only one stream's work may write `tensors`. Slots and places are not
# among it: a step that was run eagerly has the plans of the same step captured.
_plans: OrderedDict[tuple[tuple, torch.Stream | None], _Plan] = OrderedDict()


def launch(values: torch.Tensor, state: State, place: int, every: int, binning: Binning) -> None:
    """Counts one tensor in one launch. Arguments as for the operator, see ops.py."""
    flat, partials = _flatten(values), state[2]
    rdna = is_rdna(partials.device)
    constants = variant(flat.dtype, partials.shape[1], *binning[:2], warp_size(partials.device), rdna)
    numbers = _numbers(*binning, flat.dtype in _FLOAT64_DTYPES)
    tiles = _tiles(flat.numel(), flat.dtype, rdna)
    programs = min(tiles, partials.shape[1] - 1)
    with gpu.device_of(partials):
        histogram.count_one[(programs,)](flat, flat.numel(), tiles, *state, place, every, *numbers, **constants)


def launch_many(values: Sequence[torch.Tensor], state: State, at: Sequence[int], every: int, binning: Binning) -> None:
    """Counts many tensors in one launch for each dtype. Arguments as for the operator, see ops.py."""
    partials = state[2]
    groups: dict[torch.dtype, list[tuple[torch.Tensor, int]]] = {}
    for tensor, place in zip(values, at, strict=True):
        flat = _flatten(tensor)
        groups.setdefault(flat.dtype, []).append((flat, place))
    with gpu.device_of(partials):
        for dtype, group in groups.items():
            constants: dict[str, Any] = {
                "ELEMENT": ELEMENT_TYPES[dtype],
                **variant(dtype, partials.shape[1], *binning[:2], warp_size(partials.device), is_rdna(partials.device)),
            }
            numbers = _numbers(*binning, dtype in _FLOAT64_DTYPES)
            plan, tensors = _locate(group, dtype, partials)
            histogram.count_many[(plan.table.shape[0],)](plan.table, tensors, *state, every, *numbers, **constants)


def _flatten(values: torch.Tensor) -> torch.Tensor:
    """A flat view in storage order. Only a tensor with gaps is copied, by torch, to a contiguous one."""
    values = values.resolve_neg()
    flat = in_storage_order(values)
    if flat is None:
        flat = values.contiguous().view(-1)
    return flat.view(torch.uint8) if flat.dtype == torch.bool else flat


def _tiles(numel: int, dtype: torch.dtype, rdna: bool = False) -> int:
    # As many as the worst alignment needs, so that a plan does not depend on addresses.
    most_before = 16 // dtype.itemsize - 1
    return max(1, -(-(numel + most_before) // (THREADS * elements_per_thread(dtype, rdna))))


def elements_per_thread(dtype: torch.dtype, rdna: bool = False) -> int:
    """How many elements a thread takes of each tile: at most four reads of 16 bytes, to fit in its registers."""
    most = 8 if rdna and dtype == torch.bfloat16 else _ELEMENTS_PER_THREAD  # which spills there with twice as many
    return min(most, 4 * (16 // dtype.itemsize))


@functools.lru_cache(maxsize=256)
def variant(
    dtype: torch.dtype, partials_places: int, kind: int, bins: int, warp_size: int = 32, rdna: bool = False
) -> dict[str, Any]:
    """What a variant of the kernels is compiled for: dtype and binning, never shapes, strides or alignment.

    Args:
        dtype: Of the flat values, never bool.
        partials_places: partials.shape[1].
        kind: EXPONENTIAL, LINEAR or INTEGER.
        bins: Number of bins.
        warp_size: See device.py.
        rdna: See device.py.

    Returns:
        The kernels' constexpr arguments and compiler options, by name.
    """
    vector = 16 // dtype.itemsize
    # NVIDIA multiprocessors have 65,536 registers. Wider statistics than float32 would spill with that few.
    is_limited = dtype in (torch.float32, torch.bfloat16, torch.float16) and not IS_AMD
    register_limit = {"maxnreg": 65_536 // (PROGRAMS_PER_MULTIPROCESSOR * THREADS)} if is_limited else {}
    return {
        "KIND": kind,
        "K": mantissa_bits(bins) if kind == EXPONENTIAL else 0,
        "CELL_COUNT": bins if kind == EXPONENTIAL else max(THREADS, triton.next_power_of_2(bins + 2)),
        "MOST_SEGMENTS": triton.next_power_of_2(partials_places - 1),
        "PARTIALS_STRIDE": partials_places * 4,
        "UNROLL": elements_per_thread(dtype, rdna) // vector,
        "THREADS": THREADS,
        "VECTOR": vector,
        "WIDE": ELEMENT_TYPES[dtype] if dtype in _FLOAT64_DTYPES else tl.float32,
        "INLINE_PTX": INLINE_PTX,
        "num_warps": THREADS // warp_size,
        # Edges must be rounded as on the host, where a product is rounded before it is added to.
        "enable_fp_fusion": False,
        **register_limit,
    }


@functools.lru_cache(maxsize=1024)
def _numbers(kind: int, bins: int, low: float, high: float, is_float64: bool) -> tuple[int, float, float, float, float]:
    """(bins, low, closing, width, inverse_width), the arguments of `cells.find_cell`."""
    if kind in (EXPONENTIAL, INTEGER):
        return bins, 0.0, 0.0, 0.0, 0.0
    low, high, width = round_to_float32(low), round_to_float32(high), linear_width(bins, low, high)
    closing = math.nextafter(high, math.inf)
    if not is_float64:
        with np.errstate(over="ignore"):  # after the largest float32 comes infinity
            closing = float(np.nextafter(np.float32(high), np.float32(math.inf)))
    return bins, low, closing, width, 1.0 / width


def _locate(
    group: list[tuple[torch.Tensor, int]], dtype: torch.dtype, partials: torch.Tensor
) -> tuple[_Plan, torch.Tensor]:
    """The plan for a group of flat tensors, and the device table of their addresses and places."""
    sizes = tuple(flat.numel() for flat, _ in group)
    rows = tuple(number for flat, place in group for number in (flat.data_ptr(), place))
    most = partials.shape[1] - 1
    key = (partials.device, dtype, most, sizes)
    if _is_capturing(partials):
        return _locate_captured(key, rows)
    stream = gpu.current_stream(partials.device) if partials.device.type == GPU else None
    plan = _plans.get((key, stream))
    if plan is None:
        segments = _segments(sizes, dtype, most, is_rdna(partials.device))
        # torch.compile runs what it will capture once with all allocations of its thread in the graph's memory pool,
        # and raises an error if one outlives the run. What another thread allocates is none of the pool's.
        with ThreadPoolExecutor(1) as thread:
            plan = thread.submit(_make_plan, segments, len(group), partials.device, stream).result()
        _plans[key, stream] = plan
        _forget_old_plans()
    _plans.move_to_end((key, stream))
    if plan.rows != rows:
        _fill(plan.tensors, rows)
        plan.rows = rows
    return plan, plan.tensors


def _locate_captured(key: tuple, rows: tuple[int, ...]) -> tuple[_Plan, torch.Tensor]:
    plan = next((plan for (known, _), plan in _plans.items() if known == key), None)
    if plan is None:
        raise RuntimeError(
            "histogram_many_ meets these sizes for the first time during CUDA-graph capture: "
            "call it once with the same tensors before capturing"
        )
    # A table of the graph's own, filled anew at each replay. The plan's would be overwritten between replays.
    plan.is_captured = True
    tensors = torch.empty_like(plan.tensors)
    _fill(tensors, rows)
    return plan, tensors


def _make_plan(segments: list[list[int]], tensors: int, device: torch.device, stream: torch.Stream | None) -> _Plan:
    with gpu.stream(stream):
        # From pinned memory, so that the host need not wait for the copy, nor for what the stream does before it.
        table = torch.tensor(segments, dtype=torch.int64, device="cpu", pin_memory=stream is not None)
        shape = (tensors, histogram.TENSOR_WIDTH.value)
        return _Plan(table.to(device, non_blocking=True), torch.empty(shape, dtype=torch.int64, device=device))


def _is_capturing(tensor: torch.Tensor) -> bool:
    return tensor.device.type == GPU and gpu.is_current_stream_capturing()


def _fill(tensors: torch.Tensor, rows: Sequence[int]) -> None:
    # The numbers travel as arguments of the launches: no copy from the host, nothing to wait for, safe to capture.
    tensors.zero_()
    torch.ops.aten._foreach_add_.ScalarList(tensors.view(-1).unbind(), rows)


def _forget_old_plans() -> None:
    old = [key for key, plan in _plans.items() if not plan.is_captured]
    for key in old[: max(0, len(old) - _MOST_PLANS)]:
        del _plans[key]


def _segments(sizes: Sequence[int], dtype: torch.dtype, most: int, rdna: bool = False) -> list[list[int]]:
    """The rows of the table, longest segments first. A tensor has at most `most` segments: its places in partials."""
    tiles = [_tiles(numel, dtype, rdna) for numel in sizes]
    even_share = -(-sum(tiles) // (most * _SEGMENTS_PER_PROGRAM))
    table = []
    for tensor, numel in enumerate(sizes):
        share = max(even_share, -(-tiles[tensor] // most))
        count = -(-tiles[tensor] // share)
        for index in range(count):
            first, stop = index * share, min((index + 1) * share, tiles[tensor])
            table.append([tensor, numel, first, stop, index, count])
    return sorted(table, key=lambda segment: segment[2] - segment[3])
