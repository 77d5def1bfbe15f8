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
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from d9d_tracker_kernels import binning
from d9d_tracker_kernels.binning import CALLS, CELLS, EXPONENTIAL, HEADER, INTEGER, LAST_STEP, LINEAR, ZEROS, Moment

CHUNK = 1 << 19
_CHUNK_OF_ONE_THREAD = 1 << 16
_NARROW = (torch.float32, torch.bfloat16, torch.float16)  # what is binned as float32
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
    with _scratch.claimed():
        # NumPy's arrays cost less per call than tensors of one row.
        state, statistics = counts[row].numpy(), moments[row].numpy()
        header = state[:HEADER].tolist()
        is_near = kind != LINEAR or _is_near(bins, low, high)
        dtype = torch.float32 if is_near and values.dtype in _NARROW else torch.float64
        cell_of = _cell_of(kind, bins, low, high, dtype)
        zero = torch.zeros((), dtype=dtype, device="cpu")
        total, squares, smallest, largest = statistics.tolist()
        counted = np.zeros(CELLS, np.int64)
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
            ordered = chunk if chunk.is_floating_point() else exact  # `torch.aminmax` takes longer than both
            smallest, largest = min(smallest, ordered.amin().item()), max(largest, ordered.amax().item())
            total += chunk_total
            squares += torch.dot(exact, exact).item()
            if dtype == torch.float32:
                located = chunk if chunk.dtype == dtype else chunk.to(dtype)
            else:
                located = _round_to_odd(chunk) if chunk.dtype == torch.int64 else exact
            counted_here = _count(cell_of(located)).numpy()
            counted += counted_here
            # Exponential cells next to zero are mostly empty, and then there is no zero to look for.
            if kind != EXPONENTIAL or counted_here[0] or counted_here[bins // 2]:
                # In half the time of `torch.count_nonzero`.
                header[ZEROS] += int(torch.eq(located, zero, out=_scratch.like(located)).sum())
        # All at the end: an exception from a signal handler in the midst of a large tensor leaves the row as it was.
        header[CALLS] += 1
        header[LAST_STEP] = step
        state[HEADER:] += counted
        statistics[:] = total, squares, smallest, largest
        state[:HEADER] = header


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
            self._like = torch.empty(CHUNK, dtype=torch.float64, device="cpu")
            self._cell = torch.empty(CHUNK, dtype=torch.int32, device="cpu")
            self._is_above = torch.empty(CHUNK, dtype=torch.int32, device="cpu")
        self._is_used = False

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Be the one who uses it; what a signal handler counts in the middle of that gets memory of its own."""
        interrupted = dict(vars(self)) if self._is_used else None
        if interrupted is not None:
            self.__init__()
        self._is_used = True
        try:
            yield
        finally:
            self._is_used = False
            vars(self).update(interrupted or {})

    def exact(self, numel: int) -> torch.Tensor:
        return self._exact[:numel]

    def like(self, values: torch.Tensor) -> torch.Tensor:
        return self._like.view(values.dtype)[: values.numel()]

    def cell(self, numel: int) -> torch.Tensor:
        return self._cell[:numel]

    def is_above(self, numel: int) -> torch.Tensor:
        return self._is_above[:numel]


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
    header[binning.NAN] += int(torch.isnan(exact).sum())
    header[binning.POSINF] += int(torch.isposinf(exact).sum())
    header[binning.NEGINF] += int(torch.isneginf(exact).sum())
    is_finite = torch.isfinite(exact)
    return chunk[is_finite], exact[is_finite]


def _by_thread(numel: int) -> tuple[int, int]:
    """Into how many rows of which length to cut a chunk for operations that give each row to one of torch's threads."""
    rows = min(torch.get_num_threads(), numel // _GRAIN)
    return (rows, numel // rows) if rows > 1 else (0, 0)


def _count(cell: torch.Tensor) -> torch.Tensor:
    """int64 [CELLS]: how often each cell occurs in an integer tensor. `torch.bincount` alone would use one thread."""
    rows, length = _by_thread(cell.numel())
    if not rows:
        return torch.bincount(cell, minlength=CELLS)
    shared, rest = cell.tensor_split([rows * length])
    one = torch.ones((), dtype=torch.int64, device="cpu")
    counted = torch.zeros(rows, CELLS, dtype=torch.int64, device="cpu")
    counted.scatter_add_(1, shared.view(rows, length), one.expand(rows, length))
    return counted.sum(dim=0).add_(torch.bincount(rest, minlength=CELLS))


def _look_up(table: torch.Tensor, index: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """`table[index]`, in `out`. `torch.index_select` is the fastest, but would use one thread."""
    rows, length = _by_thread(index.numel())
    if not rows:
        return torch.index_select(table, 0, index, out=out)
    (shared, rest), (by_row, after) = index.tensor_split([rows * length]), out.tensor_split([rows * length])
    torch.gather(table.expand(rows, -1), 1, shared.view(rows, length), out=by_row.view(rows, length))
    torch.index_select(table, 0, rest, out=after)
    return out


def _cell_of(
    kind: int, bins: int, low: float, high: float, dtype: torch.dtype
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What gives each of the finite values of a type its cell."""
    if kind == LINEAR:
        thresholds, offset, scale = _linear(bins, low, high, dtype)
        return lambda values: _linear_cell(values, thresholds, offset, scale)
    if kind == INTEGER:
        return lambda values: _integer_cell(values, bins)
    k = binning.mantissa_bits(bins)
    # Tensors, because numbers would be made into some at each chunk.
    shift, mask = torch.tensor([23 - k, (1 << (9 + k)) - 1], dtype=torch.int32, device="cpu")
    return lambda values: _exponential_cell(values, k, shift, mask)


def _exponential_cell(values: torch.Tensor, k: int, shift: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sign, exponent and K mantissa bits of the float32 pattern, for finite values."""
    if values.dtype == torch.float32:
        cell = torch.bitwise_right_shift(values.view(torch.int32), shift, out=_scratch.cell(values.numel()))
        return cell.bitwise_and_(mask)
    # From the float64 pattern, truncated: a conversion to float32 would round values across edges.
    pattern = values.view(torch.int64)
    normal = ((pattern & (2**63 - 1)) >> (52 - k)) - (896 << k)
    denormal = (values.abs() * 2.0 ** (126 + k)).floor().to(torch.int64)
    magnitude = torch.where(normal < 1 << k, denormal, normal.clamp(max=(255 << k) - 1))
    return magnitude + torch.where(pattern < 0, 256 << k, 0)


def _integer_cell(values: torch.Tensor, bins: int) -> torch.Tensor:
    """0 for negative values, k + 1 for [k, k + 1), bins + 1 for over."""
    k = torch.floor(values, out=_scratch.like(values)).clamp_(-1, bins)
    return _scratch.cell(values.numel()).copy_(k.add_(1))


def _is_near(bins: int, low: float, high: float) -> bool:
    """Whether `_linear` guesses the nearest edge of float32 by less than a tenth of a bin in float32."""
    span = high - low
    return 2.0**-100 < span < 2.0**100 and bins * max(abs(low), abs(high)) < 2.0**18 * span


def _linear(bins: int, low: float, high: float, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Thresholds, offset and scale: `trunc(offset + scale * x)` is the edge nearest to x, or the one next to that.

    Thresholds are the edges, the last one moved up by one step: `x >= threshold` then leaves the last bin closed.
    """
    thresholds = torch.from_numpy(binning.linear_edges(bins, low, high)).to(dtype)
    scale = 1 / binning.linear_width(bins, low, high)
    offset = torch.tensor(0.5 - thresholds[0].item() * scale, dtype=dtype, device="cpu")
    thresholds[-1] = torch.nextafter(thresholds[-1], thresholds.new_tensor(math.inf))
    return thresholds, offset, scale


def _linear_cell(values: torch.Tensor, thresholds: torch.Tensor, offset: torch.Tensor, scale: float) -> torch.Tensor:
    """0 for under, 1..bins, bins + 1 for over: the nearest edge, and on which side of it the value lies."""
    guess = _scratch.like(values)
    torch.add(offset, values, alpha=scale, out=guess).clamp_(0, thresholds.numel() - 1)
    nearest = _scratch.cell(values.numel()).copy_(guess)
    is_above = torch.ge(values, _look_up(thresholds, nearest, out=guess), out=guess)
    return nearest.add_(_scratch.is_above(values.numel()).copy_(is_above))  # mixed, torch would take fresh memory
