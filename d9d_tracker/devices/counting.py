"""Large populations on devices without kernels: int32 cells, and float32 sums around a pivot, by plain operations."""

import functools

import numpy as np
import torch

from d9d_tracker_kernels import binning
from d9d_tracker_kernels.binning import CALLS, CELLS, HEADER, LAST_STEP, Moment

from .arrived import Parts

_NARROW = (torch.int16, torch.int8, torch.uint8, torch.bool)
_EXACT = (torch.float32, torch.bfloat16, torch.float16, *_NARROW)  # as float32


def can_count(values: torch.Tensor, kind: int) -> bool:
    """Tell whether float32 holds all that a kind of binning asks of a population."""
    return values.dtype in _EXACT or (kind == binning.INTEGER and not values.is_floating_point())


def count_there(chunk: torch.Tensor, row: torch.Tensor, kind: int, bins: int, low: float, high: float) -> torch.Tensor:
    """Add up to 2**24 elements to a row of counts; return float32 of shape ``[7]``, for ``merge_statistics``."""
    values = chunk.to(torch.float32)
    is_other = ~(values.abs() < torch.inf)
    column = _cell(chunk, values, kind, bins, low, high) + HEADER
    column.masked_fill_(is_other, binning.NAN).masked_fill_(values == torch.inf, binning.POSINF)
    column.masked_fill_(values == -torch.inf, binning.NEGINF)
    counted = torch.zeros(HEADER + CELLS, dtype=torch.int32, device=chunk.device)
    counted.scatter_add_(0, column.to(torch.int64), torch.ones_like(column))
    counted[binning.ZEROS] = (values == 0).sum(dtype=torch.int32)
    row.add_(counted)
    smallest = values.masked_fill(is_other, torch.inf).amin()
    largest = values.masked_fill(is_other, -torch.inf).amax()
    # A power of two, so that no bit is lost by it, and no square is too large or small.
    scale = (torch.maximum(smallest.abs(), largest.abs()).view(torch.int32) & 0x7F800000).view(torch.float32)
    scale = scale.masked_fill(scale == 0, 1.0)
    scaled = (values / scale).masked_fill_(is_other, 0.0)
    number = (~is_other).sum(dtype=torch.float32)
    pivot = scaled.sum() / number
    around = (scaled - pivot).masked_fill_(is_other, 0.0)
    return torch.stack([smallest, largest, scale, number, pivot, around.sum(), (around * around).sum()])


def merge_statistics(parts: Parts, slot: int, step: int, statistics: list[torch.Tensor]) -> None:
    """Merge what ``count_there`` has returned of each chunk of a population."""
    moments = parts.moments[slot]
    for one in statistics:
        smallest, largest, scale, number, pivot, total, squares = one.tolist()
        if number:
            moments[Moment.SUM] += scale * (total + number * pivot)
            moments[Moment.SUM_SQUARES] += scale**2 * (squares + pivot * (2 * total + number * pivot))
            moments[Moment.MIN] = min(moments[Moment.MIN], smallest)
            moments[Moment.MAX] = max(moments[Moment.MAX], largest)
    parts.counts[slot, CALLS] += 1
    parts.counts[slot, LAST_STEP] = max(step, parts.counts[slot, LAST_STEP])


def _cell(chunk: torch.Tensor, values: torch.Tensor, kind: int, bins: int, low: float, high: float) -> torch.Tensor:
    """Return the cell of each finite value, int32; see ``binning``."""
    if kind == binning.EXPONENTIAL:
        return (values.view(torch.int32) >> (23 - binning.mantissa_bits(bins))) & (bins - 1)
    if kind == binning.INTEGER:
        whole = torch.floor(values) if chunk.is_floating_point() else chunk
        whole = whole.to(torch.int32) if whole.dtype in _NARROW else whole
        return whole.clamp(-1, bins).to(torch.int32) + 1
    return torch.bucketize(values, _edges(chunk.device, bins, low, high), out_int32=True, right=True)


@functools.lru_cache(maxsize=64)
def _edges(device: torch.device, bins: int, low: float, high: float) -> torch.Tensor:
    """Return the edges of linear bins where they are needed, which is waited for once."""
    edges = binning.linear_edges(bins, low, high)
    with np.errstate(over="ignore"):
        edges[-1] = np.nextafter(edges[-1], np.float32(np.inf))  # the last bin is closed
    return torch.from_numpy(edges).to(device)
