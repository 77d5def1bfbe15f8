"""Histograms in plain torch: the CPU path, and the oracle that the GPU kernels are held against.

Counts are exact integers and statistics are float64. Values are visited in chunks of `CHUNK` elements, so memory stays
bounded whatever the tensor's size, and a chunk stays in the processor's last cache between the passes over it. Smaller
chunks would fit into the nearer caches, but each pass ends by bringing torch's threads together, which costs more where
the cores are far apart.
"""

import math
import threading
from collections.abc import Iterator

import torch

from d9d_tracker_kernels.binning import (
    CALLS,
    CELLS,
    EXPONENTIAL,
    HEADER,
    INTEGER,
    LAST_STEP,
    LINEAR,
    NAN,
    NEGINF,
    POSINF,
    ZEROS,
    linear_edges,
    mantissa_bits,
)

CHUNK = 1 << 19


def histogram_(
    values: torch.Tensor,
    counts: torch.Tensor,
    moments: torch.Tensor,
    step: int,
    row: int,
    kind: int,
    bins: int,
    low: float,
    high: float,
) -> None:
    """Adds the values of a tensor to one row of a bank, in place.

    Args:
        values: Any shape and strides, real floating point, integer or bool. Never copied whole.
        counts: int64 [rows, HEADER + CELLS].
        moments: float64 [rows, 4].
        step: The current step, filed as the row's LAST_STEP.
        row: Which row to add to.
        kind: EXPONENTIAL, LINEAR or INTEGER.
        bins: Number of bins.
        low: Lower end of a linear binning.
        high: Upper end of a linear binning.
    """
    header, cells = counts[row, :HEADER], counts[row, HEADER:]
    thresholds = _linear_thresholds(bins, low, high) if kind == LINEAR else None
    total, squares, smallest, largest = moments[row].tolist()
    zeros = 0
    for chunk in _chunks(values.resolve_neg()):
        exact = _as_float64(chunk)
        chunk_total = exact.sum().item()
        # The sum is finite only if every value is: the usual chunk needs no test per element.
        if not math.isfinite(chunk_total):
            chunk, exact = _drop_non_finite(chunk, exact, header)
            chunk_total = exact.sum().item()
        if chunk.numel() == 0:
            continue
        if thresholds is not None:
            cell = _linear_cell(exact, thresholds)
        elif kind == INTEGER:
            cell = _integer_cell(exact, bins)
        else:
            cell = _exponential_cell(chunk, exact, mantissa_bits(bins))
        counted = torch.bincount(cell, minlength=CELLS)
        cells += counted
        # Exponential cells next to zero are mostly empty, and then there is no zero to look for.
        if kind != EXPONENTIAL or counted[0] or counted[bins // 2]:
            zeros += chunk.numel() - int(torch.count_nonzero(exact))
        chunk_smallest, chunk_largest = torch.aminmax(exact)
        smallest = min(smallest, chunk_smallest.item())
        largest = max(largest, chunk_largest.item())
        total += chunk_total
        squares += torch.dot(exact, exact).item()
    moments[row] = torch.tensor([total, squares, smallest, largest], dtype=torch.float64, device="cpu")
    header[ZEROS] += zeros
    header[CALLS] += 1
    header[LAST_STEP] = step


class _Scratch(threading.local):
    """Memory of each thread, used again for each chunk: fresh memory costs more than the arithmetic, in page faults.

    Each method gives the first `numel` elements, with whatever is in them.
    """

    def __init__(self) -> None:
        with torch.inference_mode(False):  # tensors made in inference mode could not be written to outside of it
            self._exact = torch.empty(CHUNK, dtype=torch.float64, device="cpu")
            self._work = torch.empty(CHUNK, dtype=torch.float64, device="cpu")
            self._edge = torch.empty(CHUNK, dtype=torch.float64, device="cpu")
            self._cell = torch.empty(CHUNK, dtype=torch.int32, device="cpu")

    def exact(self, numel: int) -> torch.Tensor:
        return self._exact[:numel]

    def work(self, numel: int) -> torch.Tensor:
        return self._work[:numel]

    def edge(self, numel: int) -> torch.Tensor:
        return self._edge[:numel]

    def cell(self, numel: int) -> torch.Tensor:
        return self._cell[:numel]


_scratch = _Scratch()


def in_storage_order(values: torch.Tensor) -> torch.Tensor | None:
    """A flat view of a tensor without gaps (contiguous, transposed or permuted), or None if there are gaps."""
    order = sorted(range(values.dim()), key=values.stride, reverse=True)
    permuted = values.permute(order)
    return permuted.view(-1) if permuted.is_contiguous() else None


def _chunks(values: torch.Tensor) -> Iterator[torch.Tensor]:
    """Flat pieces of at most CHUNK elements. Only pieces of a tensor with gaps are copied, one at a time."""
    if values.numel() == 0:
        return
    flat = in_storage_order(values)
    if flat is not None:
        yield from flat.split(CHUNK)
    elif values.numel() <= CHUNK:
        yield values.reshape(-1)
    else:
        longest = max(range(values.dim()), key=values.size)
        slice_numel = values.numel() // values.size(longest)
        for part in values.split(max(1, CHUNK // slice_numel), dim=longest):
            yield from _chunks(part)


def _as_float64(chunk: torch.Tensor) -> torch.Tensor:
    """The chunk as float64: exact but for int64 beyond 2**53, which stays on its side of every edge.

    Those are rounded to odd (the last bit kept is set if any bit was lost, see Boldo and Melquiond, "Emulation of FMA
    and correctly rounded sums", 2008): the result never lands on an edge that the integer was not on.
    """
    if chunk.dtype == torch.float64:
        return chunk
    if chunk.dtype != torch.int64:
        return _scratch.exact(chunk.numel()).copy_(chunk)
    rounded = (chunk & ~1023) | ((chunk & 1023 != 0) * 1024)
    is_exact = (chunk > -(2**53)) & (chunk < 2**53)
    return torch.where(is_exact, chunk, rounded).to(torch.float64)


def _drop_non_finite(
    chunk: torch.Tensor, exact: torch.Tensor, header: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    header[NAN] += torch.isnan(exact).sum()
    header[POSINF] += torch.isposinf(exact).sum()
    header[NEGINF] += torch.isneginf(exact).sum()
    is_finite = torch.isfinite(exact)
    return chunk[is_finite], exact[is_finite]


def _exponential_cell(chunk: torch.Tensor, exact: torch.Tensor, k: int) -> torch.Tensor:
    """Sign, exponent and K mantissa bits of the float32 pattern, for finite values."""
    cell = _scratch.cell(chunk.numel())
    if chunk.dtype in (torch.float32, torch.bfloat16, torch.float16):
        pattern = chunk.to(torch.float32).view(torch.int32)
        return torch.bitwise_right_shift(pattern, 23 - k, out=cell).bitwise_and_((512 << k) - 1)
    # From the float64 pattern, truncated: a conversion to float32 would round values across edges.
    pattern = exact.view(torch.int64)
    normal = ((pattern & (2**63 - 1)) >> (52 - k)) - (896 << k)
    denormal = (exact.abs() * 2.0 ** (126 + k)).floor().to(torch.int64)
    magnitude = torch.where(normal < 1 << k, denormal, normal.clamp(max=(255 << k) - 1))
    return cell.copy_(magnitude + torch.where(pattern < 0, 256 << k, 0))


def _integer_cell(exact: torch.Tensor, bins: int) -> torch.Tensor:
    """0 for negative values, k + 1 for [k, k + 1), bins + 1 for over."""
    numel = exact.numel()
    k = torch.floor(exact, out=_scratch.work(numel)).clamp_(-1, bins)
    return _scratch.cell(numel).copy_(k).add_(1)


def _linear_thresholds(bins: int, low: float, high: float) -> torch.Tensor:
    """The edges as float64, the last one moved up by one step: `x >= threshold` then leaves the last bin closed."""
    thresholds = linear_edges(bins, low, high).to(torch.float64)
    thresholds[-1] = math.nextafter(thresholds[-1].item(), math.inf)
    return thresholds


def _linear_cell(exact: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """0 for under, 1..bins, bins + 1 for over: the nearest edge, and on which side of it the value lies."""
    numel, bins = exact.numel(), thresholds.numel() - 1
    low, high = thresholds[0].item(), thresholds[bins].item()
    scale = bins / (high - low)
    offset = torch.tensor(-low * scale, dtype=torch.float64, device="cpu")
    guess = torch.add(offset, exact, alpha=scale, out=_scratch.work(numel)).clamp_(0, bins).round_()
    nearest = _scratch.cell(numel).copy_(guess)
    threshold = torch.index_select(thresholds, 0, nearest, out=_scratch.edge(numel))
    # As float64, because mixed dtypes would make torch convert into fresh memory.
    is_above = torch.ge(exact, threshold, out=threshold)
    return nearest.copy_(guess.add_(is_above))
