"""Devices without a bank of their own (mps, xpu, npu): what is logged stays there, and is merged on the host.

Only what every backend of torch has is used: no float64, streams, kernels or float atomics. Scalars, and populations of
few elements, are kept as they are; larger ones are counted there. When the window ends, all of it is copied at once,
the only time the host waits, and merged as the host merges its own.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from d9d_tracker_kernels.binning import CELLS, HEADER
from d9d_tracker_kernels.reference import add_counts_, histogram_

from .arrived import Arrived, Entry, Kept, merge_counts, merge_scalars, merge_vector
from .counting import can_count, count_there, merge_statistics

_PIECE_WORDS = 1 << 13
_KEPT_ELEMENTS = 1 << 10  # a row of counts has twice as many words
_CHUNK = 1 << 22
_MOST_ENTRIES, _MOST_WORDS = 1 << 16, 1 << 23  # 32 MiB
_WIDE = (torch.int32, torch.int64, torch.float32, torch.float64)


class _Store:
    """What one device keeps of a window, as int32 words; and its histograms, int64 of shape ``[rows, columns]``."""

    def __init__(self, device: torch.device, rows: int):
        self._device, self._rows = device, rows
        self._pieces: list[tuple[torch.Tensor, int]] = []
        self._counts = torch.empty((0, HEADER + CELLS), dtype=torch.int64, device=device)
        self.words = self._counted = 0

    def keep(self, tensor: torch.Tensor) -> Kept:
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
        self._pieces = [(piece, 0) for piece, _ in self._pieces[:1]]
        self._counts[: self._counted].zero_()
        self.words = self._counted = 0


class PlainBank:
    """What is logged on such devices until the window ends: its ``entries``, into ``rows`` histograms at most."""

    def __init__(self, rows: int):
        self._rows = rows
        self._stores: dict[torch.device, _Store] = {}
        self.entries: deque[Entry] = deque()

    def merge(self, row: int, slots: list[int], values: Sequence[Any], lane: int, weight: Any) -> None:
        """Merge a number or a tensor of one element into each slot (-1 is none), for a row of the window to be."""
        kept = [self._keep(value) for value in values]
        self.entries.append((merge_scalars, (row, slots, kept, lane, self._keep(weight))))

    def merge_vector(
        self, row: int, slots: list[int], values: Sequence[Any], is_max: bool, finish: Callable[..., Any], scale: Any
    ) -> None:
        """Merge what ``finish`` makes of vectors, a number for each slot; what no column has is no slot."""
        kept = [self._keep(value) for value in values]
        self.entries.append((merge_vector, (row, slots, kept, is_max, finish, self._keep(scale))))

    def count(self, values: torch.Tensor, slot: int, step: int, binning: tuple[Any, ...]) -> bool:
        """Count a population by ``Binning.parameters``; return False if it is large and float32 cannot hold it."""
        if values.numel() <= _KEPT_ELEMENTS:
            self.entries.append((merge_counts, (histogram_, slot, step, self._keep(values), binning)))
        elif not can_count(values, binning[0]):
            return False
        else:
            with torch.inference_mode(False), torch.no_grad():
                store, chunks = self._store(values.device), values.detach().reshape(-1).split(_CHUNK)
                kept = [store.keep(count_there(chunk, store.row(slot), *binning)) for chunk in chunks]
            self.entries.append((merge_statistics, (slot, step, kept)))
        return True

    def add_counts(self, values: torch.Tensor, slot: int, step: int) -> None:
        """Add counts that are counts already; see ``count``."""
        self.entries.append((merge_counts, (add_counts_, slot, step, self._keep(values), ())))

    def copy_to_host(self) -> Arrived:
        """Copy what was logged to the host, which waits once for each device that was logged from; change nothing."""
        return Arrived(list(self.entries), {device: store.read() for device, store in self._stores.items()})

    def reset(self) -> None:
        """Forget what was logged."""
        self.entries.clear()
        for store in self._stores.values():
            store.reset()

    @property
    def is_full(self) -> bool:
        """Whether so much was logged without a step that it should be merged now."""
        return len(self.entries) > _MOST_ENTRIES or any(store.words > _MOST_WORDS for store in self._stores.values())

    def _store(self, device: torch.device) -> _Store:
        if device not in self._stores:
            self._stores[device] = _Store(device, self._rows)
        return self._stores[device]

    def _keep(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if value.device.type == "cpu":
            return value.detach().clone()
        with torch.inference_mode(False), torch.no_grad():
            return self._store(value.device).keep(value)
