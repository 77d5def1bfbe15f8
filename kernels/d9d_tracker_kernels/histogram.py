"""Triton kernels: one read of the tensor gives its histogram and all statistics.

How the work is laid out, for readers new to GPUs:

- A launch starts many *programs* (thread blocks). Each takes a *segment* of a tensor, a run of neighbouring tiles.
- A program counts its segment in cells of its own, in registers and the multiprocessor's shared memory, and touches
  the bank in main memory only once, at its end: one atomic addition for each cell that is not empty.
- Integers add up to the same result in any order, floats do not. So each program leaves its sums in a place of its
  own, and the last program of a row to finish adds these up in a fixed order: results are equal bit for bit from run
  to run. Which one is last is told by a ticket counter, which it leaves at zero for the next launch.

Inside a segment the loop is optimistic: it tests no element for NaN or infinity. A segment whose sum of squares comes
out non-finite (or so small that float32 squares vanished) is read a second time, slowly and exactly, in float64.

Sums run over UNROLL * VECTOR elements in float32 and over those sums in float64 (all in float64 for float64 and int64
values; in int64, exactly, and then in float64 for int32). A thread adds up at most 16 products in float32, each
addition off by at most 2**-24 of its result: the error of a sum is below 2**-20, or 1e-6, of the sum of magnitudes.

What is summed in float32 is the distance to a pivot, the segment's first value; the pivot is added back in float64. So
the variance of values far from zero does not drown in rounding. A pivot far off the others would drown them itself:
a segment whose pivot lies more than 8 standard deviations from its mean is read a second time, too.
"""

# Kernels are in Triton's language, which only looks like Python: pyright can type the tensors of a launch, and no more.
# What a kernel calls is compiled for whatever it is given; `int` and `float` would mean int32 and float32 to Triton.
# pyright: reportArgumentType=false, reportInvalidTypeForm=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportAssignmentType=false

import torch
import triton
import triton.language as tl

from d9d_tracker_kernels import binning, shared_atomics
from d9d_tracker_kernels.cells import allocate, find_cell, summand, widen
from d9d_tracker_kernels.tiles import finite_moments, max_tile, min_tile, sum_squares_tile, sum_tile

EXPONENTIAL = tl.constexpr(binning.EXPONENTIAL)
HEADER = tl.constexpr(binning.HEADER)
CELLS = tl.constexpr(binning.CELLS)
CALLS = tl.constexpr(binning.CALLS)
LAST_STEP = tl.constexpr(binning.LAST_STEP)
ZEROS = tl.constexpr(binning.ZEROS)
NAN = tl.constexpr(binning.NAN)
POSINF = tl.constexpr(binning.POSINF)
NEGINF = tl.constexpr(binning.NEGINF)
MOMENTS = tl.constexpr(binning.MOMENTS)
SUM = tl.constexpr(int(binning.Moment.SUM))
SUM_SQUARES = tl.constexpr(int(binning.Moment.SUM_SQUARES))
MIN = tl.constexpr(int(binning.Moment.MIN))
MAX = tl.constexpr(int(binning.Moment.MAX))

# One row of the multi-tensor table, int64: which tensor, how many elements it has, which of its tiles this program
# takes, and which of how many segments that is.
SEGMENT_TENSOR, SEGMENT_NUMEL, SEGMENT_FIRST, SEGMENT_STOP, SEGMENT_INDEX, SEGMENT_COUNT = map(tl.constexpr, range(6))
SEGMENT_WIDTH = tl.constexpr(6)

# One row of the table of tensors, int64: where the tensor lies, and at which place it is logged.
TENSOR_ADDRESS, TENSOR_PLACE = map(tl.constexpr, range(2))
TENSOR_WIDTH = tl.constexpr(2)

# Squares below this are so close to float32's end (2**-149) that their sum may have lost its leading digits.
SMALLEST_TRUSTED_SQUARES = tl.constexpr(2.0**-60)


@triton.jit
def _count(cells, cell, mask, CELL_COUNT: tl.constexpr, INLINE_PTX: tl.constexpr):
    """Adds a tile to the program's own cells: a register tensor, or with inline PTX an address in shared memory."""
    if INLINE_PTX:
        shared_atomics.count(cells, cell, mask)
    else:
        # Every cell is below CELL_COUNT. The `&` tells the compiler so, which then leaves out a test and a branch.
        cells += tl.histogram(cell & (CELL_COUNT - 1), CELL_COUNT, mask=mask)
    return cells


@triton.jit
def _add_if_any(pointer, number):
    if number != 0:
        tl.atomic_add(pointer, number, sem="relaxed")


@triton.jit
def _finish_row(header, moments, partials, step, segments, MOST_SEGMENTS: tl.constexpr):
    """Adds up what the programs of a row left, in a fixed order. Only the last one to finish gets here."""
    index = tl.arange(0, MOST_SEGMENTS)
    mask = index < segments
    # .cg reads from the L2 cache, which all multiprocessors share, past this one's own L1.
    place = partials + MOMENTS + index * MOMENTS
    total = tl.load(place + SUM, mask=mask, other=0.0, cache_modifier=".cg")
    squares = tl.load(place + SUM_SQUARES, mask=mask, other=0.0, cache_modifier=".cg")
    smallest = tl.load(place + MIN, mask=mask, other=float("inf"), cache_modifier=".cg")
    largest = tl.load(place + MAX, mask=mask, other=float("-inf"), cache_modifier=".cg")
    tl.store(moments + SUM, tl.load(moments + SUM) + tl.sum(total))
    tl.store(moments + SUM_SQUARES, tl.load(moments + SUM_SQUARES) + tl.sum(squares))
    tl.store(moments + MIN, tl.minimum(tl.load(moments + MIN), tl.min(smallest)))
    tl.store(moments + MAX, tl.maximum(tl.load(moments + MAX), tl.max(largest)))
    tl.store(header + CALLS, tl.load(header + CALLS) + 1)
    tl.store(header + LAST_STEP, step)


@triton.jit
def _count_segment(
    values,
    numel,
    first,
    stop,
    segment,
    segments,
    bank,
    row,
    step,
    binning,
    KIND: tl.constexpr,
    K: tl.constexpr,
    CELL_COUNT: tl.constexpr,
    MOST_SEGMENTS: tl.constexpr,
    PARTIALS_STRIDE: tl.constexpr,
    UNROLL: tl.constexpr,
    THREADS: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    INLINE_PTX: tl.constexpr,
):
    """Counts tiles [first, stop) of a tensor into a row of the bank.

    Tiles are laid on a grid that starts at the last 16-byte boundary before the values, so that full tiles can be
    read 16 bytes at a time whatever the alignment. `head` elements before the first value do not belong to it.
    """
    TILE: tl.constexpr = UNROLL * THREADS * VECTOR
    MOST: tl.constexpr = (1 << (WIDE.primitive_bitwidth - 1)) - 1 if WIDE.is_int() else float("inf")
    ITEM: tl.constexpr = values.dtype.element_ty.primitive_bitwidth // 8
    address = values.to(tl.int64)
    head = (address & 15) // ITEM
    base = tl.multiple_of((address - (address & 15)).to(values.dtype), 16)
    end = head + numel

    counts, moments, partials = bank
    header = counts + row * (HEADER + CELLS)
    moments += row * MOMENTS
    partials += row * PARTIALS_STRIDE

    cells = allocate(binning, KIND, CELL_COUNT, THREADS, INLINE_PTX)
    total = tl.zeros([THREADS], tl.float64)
    squares = tl.zeros([THREADS], tl.float64)
    smallest = tl.full([THREADS], MOST, WIDE)
    largest = tl.full([THREADS], -MOST - 1, WIDE)
    zeros = tl.zeros([THREADS], tl.float32)

    start = tl.maximum(first * TILE, head)
    size = tl.maximum(tl.minimum(stop * TILE, end) - start, 0)
    pivot = tl.zeros([], WIDE)
    if tl.float32 == WIDE:
        pivot = widen(tl.load(base + start, mask=size > 0, other=0))

    full_first = first + tl.where((first == 0) & (head > 0), 1, 0)
    full_stop = tl.maximum(tl.minimum(stop, end // TILE), full_first)
    for tile in range(full_first, full_stop):
        x = widen(tl.load(base + tile * TILE + tl.arange(0, TILE)))
        cell = find_cell(x, cells, binning, KIND, K, INLINE_PTX)
        cells = _count(cells, cell, None, CELL_COUNT, INLINE_PTX)
        distance = summand(x - pivot)
        total += sum_tile(distance, UNROLL, THREADS, VECTOR).to(tl.float64)
        squares += sum_squares_tile(distance, UNROLL, THREADS, VECTOR).to(tl.float64)
        smallest = tl.minimum(smallest, min_tile(x, UNROLL, THREADS, VECTOR))
        largest = tl.maximum(largest, max_tile(x, UNROLL, THREADS, VECTOR))
        # Counted in float32: comparing and adding take one instruction each. A thread sees far fewer than 2**24.
        zeros += sum_tile(tl.where(x == 0, 1.0, 0.0), UNROLL, THREADS, VECTOR)

    # Tiles that the tensor fills only in part: the same with a mask, in units of an UNROLLth of a tile.
    UNIT: tl.constexpr = THREADS * VECTOR
    inf = float("inf")
    before = (tl.minimum(full_first, stop) - first) * UNROLL
    after = tl.maximum(stop - full_stop, 0) * UNROLL
    for i in range(before + after):
        unit = tl.where(i < before, first * UNROLL + i, full_stop * UNROLL + i - before)
        index = unit * UNIT + tl.arange(0, UNIT)
        mask = (index >= head) & (index < end)
        x = widen(tl.load(base + index, mask=mask, other=0))
        cell = find_cell(x, cells, binning, KIND, K, INLINE_PTX)
        cells = _count(cells, cell, mask, CELL_COUNT, INLINE_PTX)
        distance = summand(tl.where(mask, x - pivot, 0))
        total += sum_tile(distance, 1, THREADS, VECTOR).to(tl.float64)
        squares += sum_squares_tile(distance, 1, THREADS, VECTOR).to(tl.float64)
        smallest = tl.minimum(smallest, min_tile(tl.where(mask, x, MOST), 1, THREADS, VECTOR))
        largest = tl.maximum(largest, max_tile(tl.where(mask, x, -MOST - 1), 1, THREADS, VECTOR))
        zeros += sum_tile(tl.where(mask & (x == 0), 1.0, 0.0), 1, THREADS, VECTOR)

    segment_total = tl.sum(total)
    segment_squares = tl.sum(squares)
    segment_smallest = tl.min(smallest).to(tl.float64)
    segment_largest = tl.max(largest).to(tl.float64)
    if WIDE.is_int():
        segment_smallest = tl.where(size > 0, segment_smallest, inf)
        segment_largest = tl.where(size > 0, segment_largest, -inf)
    nan = tl.zeros([], tl.int64)
    posinf = tl.zeros([], tl.int64)
    neginf = tl.zeros([], tl.int64)
    # All values are the pivot, or there are none.
    is_constant = (segment_squares == 0) & (segment_smallest >= segment_largest)
    is_trusted = segment_squares < inf
    if tl.float32 == WIDE:
        is_trusted &= segment_squares >= SMALLEST_TRUSTED_SQUARES
        # (mean - pivot)**2 <= 64 * variance, both times size**2.
        is_trusted &= 65 * segment_total * segment_total <= 64 * size.to(tl.float64) * segment_squares
    if is_trusted | is_constant:
        shift = pivot.to(tl.float64)
        segment_squares += shift * (2 * segment_total + size.to(tl.float64) * shift)
        segment_total += size.to(tl.float64) * shift
    else:
        segment_total, segment_squares, segment_smallest, segment_largest, nan, posinf, neginf = finite_moments(
            base, head, end, first, stop, TILE, THREADS, VECTOR if VECTOR < 4 else 4
        )
        _add_if_any(header + NAN, nan)
        _add_if_any(header + POSINF, posinf)
        _add_if_any(header + NEGINF, neginf)

    _add_if_any(header + ZEROS, tl.sum(zeros.to(tl.int64)))
    cell_index = tl.arange(0, CELL_COUNT)
    found = shared_atomics.read(cells, CELL_COUNT) if INLINE_PTX else cells
    if KIND == EXPONENTIAL:
        # Exponent 255 stands for Inf and NaN, which are no cells.
        found = tl.where((cell_index & ((256 << K) - 1)) < (255 << K), found, 0)
    else:
        # The loop put -Inf under, +Inf and NaN over: take them out again.
        found -= tl.where(cell_index == 0, neginf.to(tl.int32), 0)
        found -= tl.where(cell_index == binning[0] + 1, (posinf + nan).to(tl.int32), 0)
    tl.atomic_add(header + HEADER + cell_index, found.to(tl.int64), mask=found != 0, sem="relaxed")

    place = partials + MOMENTS + segment * MOMENTS
    tl.store(place + SUM, segment_total)
    tl.store(place + SUM_SQUARES, segment_squares)
    tl.store(place + MIN, segment_smallest)
    tl.store(place + MAX, segment_largest)
    # All threads have stored before one of them takes the ticket; releasing makes the stores visible to whoever
    # acquires the last ticket. See "Memory Consistency Model" in the PTX manual.
    tl.debug_barrier()
    ticket = partials.to(tl.pointer_type(tl.int64))
    if tl.atomic_add(ticket, 1, sem="acq_rel") == segments - 1:
        _finish_row(header, moments, partials, step, segments, MOST_SEGMENTS)
        tl.store(ticket, 0)


@triton.jit(
    do_not_specialize=["numel", "tiles", "place", "every", "bins", "low", "closing", "width", "inverse_width"],
    do_not_specialize_on_alignment=["values", "counts", "moments", "partials", "places", "step"],
)
def count_one(
    values: torch.Tensor,
    numel: tl.int64,
    tiles: tl.int64,
    counts: torch.Tensor,
    moments: torch.Tensor,
    partials: torch.Tensor,
    places: torch.Tensor,
    step: torch.Tensor,
    place: tl.int64,
    every: tl.int64,
    bins: tl.int32,
    low: tl.float64,
    closing: tl.float64,
    width: tl.float64,
    inverse_width: tl.float64,
    KIND: tl.constexpr,
    K: tl.constexpr,
    CELL_COUNT: tl.constexpr,
    MOST_SEGMENTS: tl.constexpr,
    PARTIALS_STRIDE: tl.constexpr,
    UNROLL: tl.constexpr,
    THREADS: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    INLINE_PTX: tl.constexpr,
):
    """Counts one tensor, its tiles divided evenly among the programs. Does nothing off the cadence `every`."""
    now = tl.load(step)
    row = tl.load(places + place)
    if (now % every == 0) & (row >= 0):
        segment = tl.program_id(0).to(tl.int64)
        segments = tl.num_programs(0).to(tl.int64)
        first = segment * tiles // segments
        stop = (segment + 1) * tiles // segments
        _count_segment(
            values,
            numel,
            first,
            stop,
            segment,
            segments,
            (counts, moments, partials),
            row,
            now,
            (bins, low, closing, width, inverse_width),
            KIND,
            K,
            CELL_COUNT,
            MOST_SEGMENTS,
            PARTIALS_STRIDE,
            UNROLL,
            THREADS,
            VECTOR,
            WIDE,
            INLINE_PTX,
        )


@triton.jit(
    do_not_specialize=["every", "bins", "low", "closing", "width", "inverse_width"],
    do_not_specialize_on_alignment=["table", "tensors", "counts", "moments", "partials", "places", "step"],
)
def count_many(
    table: torch.Tensor,
    tensors: torch.Tensor,
    counts: torch.Tensor,
    moments: torch.Tensor,
    partials: torch.Tensor,
    places: torch.Tensor,
    step: torch.Tensor,
    every: tl.int64,
    bins: tl.int32,
    low: tl.float64,
    closing: tl.float64,
    width: tl.float64,
    inverse_width: tl.float64,
    ELEMENT: tl.constexpr,
    KIND: tl.constexpr,
    K: tl.constexpr,
    CELL_COUNT: tl.constexpr,
    MOST_SEGMENTS: tl.constexpr,
    PARTIALS_STRIDE: tl.constexpr,
    UNROLL: tl.constexpr,
    THREADS: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    INLINE_PTX: tl.constexpr,
):
    """Counts many tensors of one dtype: each program reads in the table which segment of which tensor is its own."""
    now = tl.load(step)
    entry = table + tl.program_id(0) * SEGMENT_WIDTH
    tensor = tensors + tl.load(entry + SEGMENT_TENSOR) * TENSOR_WIDTH
    row = tl.load(places + tl.load(tensor + TENSOR_PLACE))
    if (now % every == 0) & (row >= 0):
        address = tl.load(tensor + TENSOR_ADDRESS)
        _count_segment(
            address.to(tl.pointer_type(ELEMENT)),
            tl.load(entry + SEGMENT_NUMEL),
            tl.load(entry + SEGMENT_FIRST),
            tl.load(entry + SEGMENT_STOP),
            tl.load(entry + SEGMENT_INDEX),
            tl.load(entry + SEGMENT_COUNT),
            (counts, moments, partials),
            row,
            now,
            (bins, low, closing, width, inverse_width),
            KIND,
            K,
            CELL_COUNT,
            MOST_SEGMENTS,
            PARTIALS_STRIDE,
            UNROLL,
            THREADS,
            VECTOR,
            WIDE,
            INLINE_PTX,
        )
