"""Windows of the same rows and slots become one on rank 0: a maximum and two sums, whatever the number of series."""

from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist

from d9d_tracker.accumulator.host_window import HostWindow
from d9d_tracker.accumulator.spread import rank_columns
from d9d_tracker_kernels import COUNT, LAST, LAST_STEP, MAX, NEGATED_MIN, Moment

from .finish import finish

_NAN = np.iinfo(np.int64).max


def reduce_window(window: HostWindow, group: dist.ProcessGroup) -> HostWindow:
    """Merge the windows of all ranks. Every rank must call it, with a window of the same steps and series.

    Counts add up as integers and sums in float64; extremes travel as integers of the same order, in which NaN is the
    largest, so that it runs through; last is the value of the highest rank that has one in the step.

    Args:
        window: This rank's window; it is not changed.
        group: A gloo group.

    Returns:
        The window that all values would have given on rank 0; on the others it holds nothing of use.

    Raises:
        RuntimeError: If a rank does not take part within the group's timeout.
    """
    rank = dist.get_rank(group)
    lanes, counts, moments = window.lanes, window.counts, window.moments
    last_rank = np.where(lanes[:, COUNT] > 0, rank, -1)
    most = [
        _ordered(lanes[:, MAX : NEGATED_MIN + 1]),
        _ordered(moments[:, Moment.MAX]),
        _ordered(-moments[:, Moment.MIN]),
        counts[:, LAST_STEP],
        last_rank,
    ]
    extremes, largest, smallest, last_step, last_rank = _all_reduce(most, dist.ReduceOp.MAX, group)
    ranks, values = rank_columns(window.scalars)
    if ranks:  # of the ranks with the largest value, the highest
        has_most = (_ordered(lanes[:, MAX]) == extremes[:, 0])[:, values] & (lanes[:, COUNT][:, values] > 0)
        (last_rank[:, ranks],) = _all_reduce([np.where(has_most, rank, -1)], dist.ReduceOp.MAX, group)
    last = np.where(last_rank == rank, lanes[:, LAST], 0.0)
    sums, last, sums_of_moments = _reduce([lanes[:, : COUNT + 1], last, moments[:, : Moment.MIN]], group)
    (counts,) = _reduce([counts], group)
    counts[:, LAST_STEP] = last_step
    return replace(
        window,
        lanes=np.concatenate((sums, _floats(extremes), last[:, None]), axis=1),
        counts=counts,
        moments=np.column_stack((sums_of_moments, -_floats(smallest), _floats(largest))),
    )


def _all_reduce(parts: list[np.ndarray], operation: dist.ReduceOp.RedOpType, group: dist.ProcessGroup):
    packed = _packed(parts)
    finish(dist.all_reduce(packed, operation, group=group, async_op=True))
    return _unpacked(packed, parts)


def _reduce(parts: list[np.ndarray], group: dist.ProcessGroup) -> list[np.ndarray]:
    packed = _packed(parts)
    finish(dist.reduce(packed, group=group, group_dst=0, async_op=True))
    return _unpacked(packed, parts)


def _packed(parts: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([np.ravel(part) for part in parts]))


def _unpacked(packed: torch.Tensor, like: list[np.ndarray]) -> list[np.ndarray]:
    pieces = np.split(packed.numpy(), np.cumsum([part.size for part in like])[:-1])
    return [piece.reshape(part.shape) for piece, part in zip(pieces, like, strict=True)]


def _ordered(floats: np.ndarray) -> np.ndarray:
    """Return int64 in the order of float64: the bits of a negative number fall as the number does, so they are flipped.

    All NaN become the largest integer, above infinity.
    """
    bits = np.ascontiguousarray(floats).view(np.int64)
    return np.where(np.isnan(floats), _NAN, np.where(bits < 0, bits ^ _NAN, bits))


def _floats(keys: np.ndarray) -> np.ndarray:
    floats = np.where(keys < 0, keys ^ _NAN, keys).view(np.float64)
    return np.where(keys == _NAN, np.nan, floats)
