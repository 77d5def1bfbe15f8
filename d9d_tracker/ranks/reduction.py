"""Windows of the same rows and slots become one on rank 0: a maximum and two sums, whatever the number of series."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from d9d_tracker.windows.host_window import HostWindow
from d9d_tracker.windows.spread import rank_columns
from d9d_tracker_kernels.binning import LAST_STEP, Moment
from d9d_tracker_kernels.lanes import COUNT, LAST, MAX, NEGATED_MIN

from .group import Group

_NAN = np.iinfo(np.int64).max


def reduce_window(window: HostWindow, group: Group) -> HostWindow:
    """Return, on the first rank, the window that all values would have given; on the others, nothing of use.

    Every rank must call it, with a window of the same steps and series, which is not changed. Counts add up as integers
    and sums in float64; extremes travel as integers of the same order, in which NaN is the largest, so that it runs
    through; last is the value of the highest rank that has one in the step. ``RuntimeError`` if a rank is gone.
    """
    rank = group.rank
    lanes, counts, moments = window.lanes, window.counts, window.moments
    last_rank = np.where(lanes[:, COUNT] > 0, rank, -1)
    floats = lanes[:, MAX : NEGATED_MIN + 1], moments[:, Moment.MAX], -moments[:, Moment.MIN]
    most = [*map(_ordered, floats), counts[:, LAST_STEP], last_rank]
    extremes, largest, smallest, last_step, last_rank = _across(most, group.all_reduce_max)
    ranks, values = rank_columns(window.scalars)
    if ranks:  # of the ranks with the largest value, the highest
        has_most = (_ordered(lanes[:, MAX]) == extremes[:, 0])[:, values] & (lanes[:, COUNT][:, values] > 0)
        (last_rank[:, ranks],) = _across([np.where(has_most, rank, -1)], group.all_reduce_max)
    last = np.where(last_rank == rank, lanes[:, LAST], 0.0)
    added = [lanes[:, : COUNT + 1], last, moments[:, : Moment.MIN]]
    sums, last, sums_of_moments = _across(added, group.reduce_sum)
    (counts,) = _across([counts], group.reduce_sum)
    counts[:, LAST_STEP] = last_step
    return replace(
        window,
        lanes=np.concatenate((sums, _floats(extremes), last[:, None]), axis=1),
        counts=counts,
        moments=np.column_stack((sums_of_moments, -_floats(smallest), _floats(largest))),
    )


def _across(parts: list[np.ndarray], collective: Callable[[torch.Tensor], None]) -> list[np.ndarray]:
    """Return arrays of one dtype, of any shapes, as one collective makes them of those of all ranks."""
    packed = torch.from_numpy(np.concatenate([np.ravel(part) for part in parts]))
    collective(packed)
    pieces = np.split(packed.numpy(), np.cumsum([part.size for part in parts])[:-1])
    return [piece.reshape(part.shape) for piece, part in zip(pieces, parts, strict=True)]


def _ordered(floats: np.ndarray) -> np.ndarray:
    """Return int64 in the order of float64, with NaN above infinity: of a negative number the bits are flipped."""
    bits = np.ascontiguousarray(floats).view(np.int64)
    return np.where(np.isnan(floats), _NAN, np.where(bits < 0, bits ^ _NAN, bits))


def _floats(keys: np.ndarray) -> np.ndarray:
    floats = np.where(keys < 0, keys ^ _NAN, keys).view(np.float64)
    return np.where(keys == _NAN, np.nan, floats)
