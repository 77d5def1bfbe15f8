"""What was logged on devices without a bank: words that lie there, copied at once, and merged as the host merges."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from d9d_tracker_kernels.binning import CELLS, HEADER, LAST_STEP
from d9d_tracker_kernels.lanes import MAX, SUM
from d9d_tracker_kernels.scalars import flat_numbers, merge_number

_PIECE_WORDS = 1 << 13
_WIDE = (torch.int32, torch.int64, torch.float32, torch.float64)


class Kept(NamedTuple):
    """Where a tensor lies among the words of its device."""

    device: torch.device
    first: int
    words: int
    dtype: torch.dtype


class Store:
    """What one device keeps of a window, as int32 words; and its histograms, int64 of shape ``[rows, columns]``."""

    def __init__(self, device: torch.device, rows: int):
        self._device, self._rows = device, rows
        self._pieces: list[tuple[torch.Tensor, int]] = []
        self._counts = torch.empty((0, HEADER + CELLS), dtype=torch.int64, device=device)
        self.words = self._counted = 0

    def keep(self, tensor: torch.Tensor) -> Kept:
        """Copy a tensor to the words, on the device."""
        flat = tensor.detach().reshape(-1)
        if flat.dtype not in _WIDE:
            whole = torch.int64 if flat.element_size() > 2 else torch.int32  # unsigned ones of 32 bits too
            flat = flat.to(torch.float32 if flat.is_floating_point() else whole)
        words = flat.contiguous().view(torch.int32)
        number, first = words.numel(), self.words
        if not self._pieces or self._pieces[-1][1] + number > self._pieces[-1][0].numel():
            piece = torch.empty(max(number, _PIECE_WORDS), dtype=torch.int32, device=self._device)
            self._pieces.append((piece, 0))
        piece, used = self._pieces[-1]
        piece[used : used + number].copy_(words)
        self._pieces[-1] = piece, used + number
        self.words += number
        return Kept(self._device, first, number, flat.dtype)

    def row(self, slot: int) -> torch.Tensor:
        """Return the row of a histogram, to be counted into."""
        if not len(self._counts):
            self._counts = torch.zeros((self._rows, HEADER + CELLS), dtype=torch.int64, device=self._device)
        self._counted = max(self._counted, slot + 1)
        return self._counts[slot]

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Wait for the device, once; return the words and the rows of counts."""
        parts = [piece[:used] for piece, used in self._pieces]
        parts.append(self._counts[: self._counted].reshape(-1).view(torch.int32))
        words = torch.cat(parts).to("cpu").numpy() if self.words or self._counted else np.empty(0, np.int32)
        return words[: self.words], words[self.words :].view(np.int64).reshape(-1, HEADER + CELLS)

    def reset(self) -> None:
        """Forget all of it."""
        self._pieces = [(piece, 0) for piece, _ in self._pieces[:1]]
        self._counts[: self._counted].zero_()
        self.words = self._counted = 0


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
    """Merge what ``finish`` makes of vectors and a scale, as float64; see ``Elsewhere.merge_vector``."""
    wide = [None if one is None else one.to(torch.float64) for one in (*vectors, scale)]
    merge_scalars(parts, row, slots, finish(wide[:-1], wide[-1]).tolist(), MAX if is_max else SUM)


def merge_counts(parts: Parts, count: Any, slot: int, step: int, values: torch.Tensor, binning: Sequence[Any]) -> None:
    """Count a population by an operator of the host, for which a later step may have been counted already."""
    last = int(parts.counts[slot, LAST_STEP])
    count(values, torch.from_numpy(parts.counts), torch.from_numpy(parts.moments), max(step, last), slot, *binning)
