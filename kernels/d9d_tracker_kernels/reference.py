"""Histograms in plain torch: the CPU path, and the oracle that the GPU kernels are held against.

Counts are exact integers and statistics are float64. Values are visited in chunks of `CHUNK` elements, so memory stays
bounded whatever the tensor's size, and a chunk stays in the processor's last cache between the passes over it. Those of
one thread stay in a nearer one; with several, each pass ends by bringing them together, which costs more than it saves
where the cores are far apart.

Under `torch.set_flush_denormal(True)`, which is the processor's, denormals count as zeros in the statistics.

Every pass shares a chunk among torch's threads in the same way, so each thread meets only memory that it wrote itself:
where two cores have no cache in common, memory that one wrote and the other read is slow to be written again.
"""

import math
import threading
from collections.abc import Iterator
from typing import Any

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
    Moment,
    linear_edges,
    mantissa_bits,
)

CHUNK = 1 << 19
_CHUNK_OF_ONE_THREAD = 1 << 16
_GRAIN = 1 << 15  # with fewer elements for each, torch does not share an operation among its threads


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
    outer = _scratch.begin()
    try:
        _add(values, counts, moments, step, row, kind, bins, low, high)
    finally:
        _scratch.end(outer)


def _add(
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
    header_row, cells = counts[row].split([HEADER, CELLS])
    header = header_row.tolist()
    thresholds = _linear_thresholds(bins, low, high) if kind == LINEAR else None
    total, squares, smallest, largest = moments[row].tolist()
    counted = torch.zeros(CELLS, dtype=torch.int64, device="cpu")
    for piece in _chunks(values):
        chunk = piece.resolve_neg()
        exact = _as_float64(chunk)
        chunk_total = exact.sum().item()
        # The sum is finite only if every value is: the usual chunk needs no test per element.
        if not math.isfinite(chunk_total):
            chunk, exact = _drop_non_finite(chunk, exact, header)
            chunk_total = exact.sum().item()
        if chunk.numel() == 0:
            continue
        chunk_smallest, chunk_largest = torch.aminmax(chunk if chunk.is_floating_point() else exact)
        smallest = min(smallest, chunk_smallest.item())
        largest = max(largest, chunk_largest.item())
        total += chunk_total
        squares += torch.dot(exact, exact).item()
        located = _round_to_odd(chunk) if chunk.dtype == torch.int64 else exact
        if thresholds is not None:
            cell = _linear_cell(located, thresholds)
        elif kind == INTEGER:
            cell = _integer_cell(located, bins)
        else:
            cell = _exponential_cell(chunk, located, mantissa_bits(bins))
        counted_here = _count(cell)
        counted += counted_here
        # Exponential cells next to zero are mostly empty, and then there is no zero to look for.
        if kind != EXPONENTIAL or counted_here[0] or counted_here[bins // 2]:
            header[ZEROS] += chunk.numel() - int(torch.count_nonzero(chunk))
    # All at the end: an exception from a signal handler in the midst of a large tensor leaves the row as it was.
    cells += counted
    moments[row] = torch.tensor([total, squares, smallest, largest], dtype=torch.float64, device="cpu")
    header[CALLS] += 1
    header[LAST_STEP] = step
    header_row.copy_(torch.tensor(header, dtype=torch.int64, device="cpu"))


def add_counts_(values: torch.Tensor, counts: torch.Tensor, moments: torch.Tensor, step: int, row: int) -> None:
    """Adds counts that are counts already to one row of a bank of integer binnings, in place.

    Args:
        values: int [n]: how often each of 0..n-1 occurred, not negative.
        counts: int64 [rows, HEADER + CELLS].
        moments: float64 [rows, MOMENTS].
        step: The current step, filed as the row's LAST_STEP.
        row: Which row to add to.
    """
    added = values.to(torch.int64)
    counts[row, HEADER + 1 : HEADER + 1 + len(added)] += added
    counts[row, ZEROS] += added[0]
    counts[row, CALLS] += 1
    counts[row, LAST_STEP] = step
    number = torch.arange(len(added), device="cpu")
    moments[row, Moment.SUM] += (number * added).sum()
    moments[row, Moment.SUM_SQUARES] += (number * number * added).sum()
    found = number[added > 0].tolist()
    if found:
        moments[row, Moment.MIN] = min(moments[row, Moment.MIN].item(), found[0])
        moments[row, Moment.MAX] = max(moments[row, Moment.MAX].item(), found[-1])


class _Scratch(threading.local):
    """Memory of each thread, used again for each chunk: fresh memory costs more than the arithmetic, in page faults.

    Each method gives the first `numel` elements, with whatever is in them.
    """

    def __init__(self) -> None:
        with torch.inference_mode(False):  # tensors made in inference mode could not be written to outside of it
            self._exact = torch.empty(CHUNK, dtype=torch.float64, device="cpu")
            self._guess = torch.empty(CHUNK, dtype=torch.float64, device="cpu")
            self._threshold = torch.empty(CHUNK, dtype=torch.float64, device="cpu")
            self._nearest = torch.empty(CHUNK, dtype=torch.int64, device="cpu")
        self._is_used = False

    def begin(self) -> dict[str, Any] | None:
        """Claim it; what a signal handler counts in the middle of another count gets memory of its own."""
        outer = dict(vars(self)) if self._is_used else None
        if outer is not None:
            self.__init__()
        self._is_used = True
        return outer

    def end(self, outer: dict[str, Any] | None) -> None:
        """Give it back, to the count that was interrupted if there is one."""
        self._is_used = False
        vars(self).update(outer or {})

    def exact(self, numel: int) -> torch.Tensor:
        return self._exact[:numel]

    def cell(self, numel: int) -> torch.Tensor:
        """The memory of `exact`: cells are written when nothing needs the values any more, and the caches are warm."""
        return self._exact[:numel].view(torch.int64)

    def guess(self, numel: int) -> torch.Tensor:
        return self._guess[:numel]

    def threshold(self, numel: int) -> torch.Tensor:
        return self._threshold[:numel]

    def nearest(self, numel: int) -> torch.Tensor:
        return self._nearest[:numel]


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
    most = CHUNK if torch.get_num_threads() > 1 else min(CHUNK, _CHUNK_OF_ONE_THREAD)
    flat = in_storage_order(values)
    if flat is not None:
        yield from flat.split(most)
    elif values.numel() <= most:
        yield values.reshape(-1)
    else:
        longest = max(range(values.dim()), key=values.size)
        slice_numel = values.numel() // values.size(longest)
        for part in values.split(max(1, most // slice_numel), dim=longest):
            yield from _chunks(part)


def _as_float64(chunk: torch.Tensor) -> torch.Tensor:
    """The chunk as float64: exact but for int64 beyond 2**53, which is rounded to nearest."""
    return chunk if chunk.dtype == torch.float64 else _scratch.exact(chunk.numel()).copy_(chunk)


def _round_to_odd(chunk: torch.Tensor) -> torch.Tensor:
    """An int64 chunk as float64 that stays on its side of every edge, also beyond 2**53.

    The last bit kept is set if any bit was lost (see Boldo and Melquiond, "Emulation of FMA and correctly rounded
    sums", 2008), so the result never lands on an edge that the integer was not on.
    """
    rounded = (chunk & ~1023) | ((chunk & 1023 != 0) * 1024)
    is_exact = (chunk > -(2**53)) & (chunk < 2**53)
    return torch.where(is_exact, chunk, rounded).to(torch.float64)


def _drop_non_finite(chunk: torch.Tensor, exact: torch.Tensor, header: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    header[NAN] += int(torch.isnan(exact).sum())
    header[POSINF] += int(torch.isposinf(exact).sum())
    header[NEGINF] += int(torch.isneginf(exact).sum())
    is_finite = torch.isfinite(exact)
    return chunk[is_finite], exact[is_finite]


def _by_thread(numel: int) -> tuple[int, int]:
    """Into how many rows of which length to cut a chunk for operations that give each row to one of torch's threads."""
    rows = min(torch.get_num_threads(), numel // _GRAIN)
    return (rows, numel // rows) if rows > 1 else (0, 0)


def _count(cell: torch.Tensor) -> torch.Tensor:
    """int64 [CELLS]: how often each cell occurs in an integer tensor. `torch.bincount` alone would use one thread."""
    rows, length = _by_thread(cell.numel())
    shared, rest = cell.tensor_split([rows * length])
    counted = torch.bincount(rest, minlength=CELLS)
    if rows:
        one = torch.ones((), dtype=torch.int64, device="cpu")
        counted_by_row = torch.zeros(rows, CELLS, dtype=torch.int64, device="cpu")
        counted_by_row.scatter_add_(1, shared.view(rows, length), one.expand(rows, length))
        counted += counted_by_row.sum(dim=0)
    return counted


def _look_up(table: torch.Tensor, index: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """`table[index]`, in `out`. `torch.take` alone would be half as fast, for it knows of no contiguous rows."""
    rows, length = _by_thread(index.numel())
    shared, rest = index.tensor_split([rows * length])
    shared_out, rest_out = out.tensor_split([rows * length])
    if rows:
        torch.gather(table.expand(rows, -1), 1, shared.view(rows, length), out=shared_out.view(rows, length))
    torch.take(table, rest, out=rest_out)
    return out


def _low_bits(shifted: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """int64 n from float64 2**52 + n, whose low 52 bits are n: four times as fast as a conversion."""
    return torch.bitwise_and(shifted.view(torch.int64), 2**52 - 1, out=out)


def _exponential_cell(chunk: torch.Tensor, exact: torch.Tensor, k: int) -> torch.Tensor:
    """Sign, exponent and K mantissa bits of the float32 pattern, for finite values."""
    if chunk.dtype in (torch.float32, torch.bfloat16, torch.float16):
        numel, values = chunk.numel(), chunk.to(torch.float32)
        cell = _scratch.cell(numel)
        if _by_thread(numel)[0]:
            return cell.copy_(values.view(torch.uint32)).bitwise_right_shift_(23 - k)
        # `torch.bincount` alone will count, for which half the memory does.
        narrow = torch.bitwise_right_shift(values.view(torch.int32), 23 - k, out=cell.view(torch.int32)[:numel])
        return narrow.bitwise_and_((1 << (9 + k)) - 1)
    # From the float64 pattern, truncated: a conversion to float32 would round values across edges.
    pattern = exact.view(torch.int64)
    normal = ((pattern & (2**63 - 1)) >> (52 - k)) - (896 << k)
    denormal = (exact.abs() * 2.0 ** (126 + k)).floor().to(torch.int64)
    magnitude = torch.where(normal < 1 << k, denormal, normal.clamp(max=(255 << k) - 1))
    return magnitude + torch.where(pattern < 0, 256 << k, 0)


def _integer_cell(exact: torch.Tensor, bins: int) -> torch.Tensor:
    """0 for negative values, k + 1 for [k, k + 1), bins + 1 for over."""
    numel = exact.numel()
    k = torch.floor(exact, out=_scratch.guess(numel)).clamp_(-1, bins)
    return _low_bits(k.add_(2.0**52 + 1), out=_scratch.cell(numel))


def _linear_thresholds(bins: int, low: float, high: float) -> torch.Tensor:
    """The edges as float64, the last one moved up by one step: `x >= threshold` then leaves the last bin closed."""
    thresholds = torch.from_numpy(linear_edges(bins, low, high)).to(torch.float64)
    thresholds[-1] = math.nextafter(thresholds[-1].item(), math.inf)
    return thresholds


def _linear_cell(exact: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """0 for under, 1..bins, bins + 1 for over: the nearest edge, and on which side of it the value lies."""
    numel, bins = exact.numel(), thresholds.numel() - 1
    low, high = thresholds[0].item(), thresholds[bins].item()
    scale = bins / (high - low)
    offset = torch.tensor(-low * scale, dtype=torch.float64, device="cpu")
    guess = torch.add(offset, exact, alpha=scale, out=_scratch.guess(numel)).clamp_(0, bins)
    shifted = guess.add_(2.0**52)  # which rounds to a whole number
    nearest = _low_bits(shifted, out=_scratch.nearest(numel))
    threshold = _look_up(thresholds, nearest, out=_scratch.threshold(numel))
    # As float64, because mixed dtypes would make torch convert into fresh memory.
    is_above = torch.ge(exact, threshold, out=threshold)
    return _low_bits(shifted.add_(is_above), out=_scratch.cell(numel))
