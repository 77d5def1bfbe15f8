"""What was logged on devices without a bank, once it is on the host: merged as the host merges its own."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from d9d_tracker_kernels.binning import LAST_STEP
from d9d_tracker_kernels.lanes import MAX, SUM
from d9d_tracker_kernels.scalars import flat_numbers, merge_number


class Kept(NamedTuple):
    """Where a tensor lies among the words of its device."""

    device: torch.device
    first: int
    words: int
    dtype: torch.dtype


class Parts(NamedTuple):
    """States that are merged into: see ``HostWindow``; the rows of scalars one by one."""

    rows: Sequence[np.ndarray]
    counts: np.ndarray
    moments: np.ndarray


Entry = tuple[Callable[..., None], tuple[Any, ...]]  # what merges, and what it takes: also Kept, and lists of it


class Arrived(NamedTuple):
    """What was logged in a window, in the order in which it was logged; words and counts of each device."""

    entries: list[Entry]
    stores: dict[torch.device, tuple[np.ndarray, np.ndarray]]

    def merge_into(self, parts: Parts) -> None:
        """Merge it into what was logged before."""
        for _, counts in self.stores.values():
            parts.counts[: len(counts)] += counts
        for merge, arguments in self.entries:
            merge(parts, *map(self._read, arguments))

    def _read(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._read(one) for one in value]
        if not isinstance(value, Kept):
            return value
        words = self.stores[value.device][0][value.first : value.first + value.words]
        return torch.from_numpy(words.copy()).view(value.dtype)


def merge_scalars(parts: Parts, row: int, slots: list[int], values: list[Any], lane: int, weight: Any = 1.0) -> None:
    """Merge numbers into slots of a row; what it has no column for is no slot."""
    state, factor = torch.from_numpy(parts.rows[row]), float(weight)
    flat, strides, columns = flat_numbers(state), state.stride(), state.shape[1]
    for slot, value in zip(slots, values, strict=True):
        if 0 <= slot < columns:
            merge_number(flat, strides, slot, lane, float(value), factor)


def merge_vector(
    parts: Parts, row: int, slots: list[int], vectors: list[Any], is_max: bool, finish: Callable[..., Any], scale: Any
) -> None:
    """Merge what ``finish`` makes of vectors and a scale, as float64; see ``PlainBank.merge_vector``."""
    wide = [None if one is None else one.to(torch.float64) for one in (*vectors, scale)]
    merge_scalars(parts, row, slots, finish(wide[:-1], wide[-1]).tolist(), MAX if is_max else SUM)


def merge_counts(parts: Parts, count: Any, slot: int, step: int, values: torch.Tensor, binning: Sequence[Any]) -> None:
    """Count a population by an operator of the host, for which a later step may have been counted already."""
    last = int(parts.counts[slot, LAST_STEP])
    count(values, torch.from_numpy(parts.counts), torch.from_numpy(parts.moments), max(step, last), slot, *binning)
