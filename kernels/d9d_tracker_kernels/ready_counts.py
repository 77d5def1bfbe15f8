"""Counts that are counts already: a vector of integers added to the cells of an integer binning, in one launch."""

# Kernels are in Triton's language, which only looks like Python: pyright cannot type it.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportInvalidTypeForm=false, reportCallIssue=false

import torch
import triton
import triton.language as tl

from d9d_tracker_kernels.device import gpu
from d9d_tracker_kernels.histogram import CALLS, CELLS, HEADER, LAST_STEP, MAX, MIN, MOMENTS, SUM, SUM_SQUARES, ZEROS


def launch(values: torch.Tensor, state: tuple[torch.Tensor, ...], place: int, every: int) -> None:
    """Adds counts in one launch. Arguments as for the operator, see ops.py: `state` is counts to step."""
    constants = {
        "WIDTH": max(128, triton.next_power_of_2(values.numel())),
        "enable_fp_fusion": False,  # said, because Triton warns of a default that will change
    }
    with gpu.device_of(state[0]):
        add_counts[(1,)](values.contiguous(), values.numel(), *state, place, every, **constants)


@triton.jit(
    do_not_specialize=["numel", "place", "every"],
    do_not_specialize_on_alignment=["values", "counts", "moments", "places", "step"],
)
def add_counts(
    values: torch.Tensor,
    numel: tl.int32,
    counts: torch.Tensor,
    moments: torch.Tensor,
    places: torch.Tensor,
    step: torch.Tensor,
    place: tl.int64,
    every: tl.int64,
    WIDTH: tl.constexpr,
):
    """Adds values[k] to the cell of the integer k. One program: nobody else touches the row meanwhile."""
    now = tl.load(step)
    row = tl.load(places + place)
    if (now % every == 0) & (row >= 0):
        k = tl.arange(0, WIDTH)
        mask = k < numel
        number = tl.load(values + k, mask=mask, other=0).to(tl.int64)
        header = counts + row * (HEADER + CELLS)
        cells = header + HEADER + 1 + k
        tl.store(cells, tl.load(cells, mask=mask, other=0) + number, mask=mask)
        tl.store(header + ZEROS, tl.load(header + ZEROS) + tl.sum(tl.where(k == 0, number, 0)))
        tl.store(header + CALLS, tl.load(header + CALLS) + 1)
        tl.store(header + LAST_STEP, now)
        moments += row * MOMENTS
        value = k.to(tl.int64)
        inf = float("inf")
        total = tl.sum(value * number).to(tl.float64)
        squares = tl.sum(value * value * number).to(tl.float64)
        smallest = tl.min(tl.where(number > 0, k.to(tl.float64), inf))
        largest = tl.max(tl.where(number > 0, k.to(tl.float64), -inf))
        tl.store(moments + SUM, tl.load(moments + SUM) + total)
        tl.store(moments + SUM_SQUARES, tl.load(moments + SUM_SQUARES) + squares)
        tl.store(moments + MIN, tl.minimum(tl.load(moments + MIN), smallest))
        tl.store(moments + MAX, tl.maximum(tl.load(moments + MAX), largest))
