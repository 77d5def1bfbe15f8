"""Devices without a bank of their own (mps, xpu, npu): what is logged stays there, and is merged on the host.

Only what every backend of torch has is used: no float64, streams, kernels or float atomics. Scalars, and populations of
few elements, are kept as they are; larger ones are counted there by int32 cells and float32 sums around a pivot. When
the window ends, all of it is copied at once, the only time the host waits, and merged as the host merges its own.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from d9d_tracker_kernels import (
    CALLS,
    CELLS,
    EXPONENTIAL,
    HEADER,
    INTEGER,
    LAST_STEP,
    NAN,
    NEGINF,
    POSINF,
    ZEROS,
    Moment,
)
from d9d_tracker_kernels.binning import linear_edges, mantissa_bits
from d9d_tracker_kernels.lanes import MAX, SUM
from d9d_tracker_kernels.reference import add_counts_, histogram_
from d9d_tracker_kernels.scalars import merge_number

_PIECE_WORDS = 1 << 13
_KEPT_ELEMENTS = 1 << 10  # a row of counts has twice as many words
_CHUNK = 1 << 22  # float32 counts so far
_MOST_ENTRIES, _MOST_WORDS = 1 << 16, 1 << 23  # 32 MiB
_WIDE = (torch.int32, torch.int64, torch.float32, torch.float64)
_EXACT = (torch.float32, torch.bfloat16, torch.float16, torch.int16, torch.int8, torch.uint8, torch.bool)  # as float32


class _Kept(NamedTuple):
    """Where a tensor lies among the words of its device."""

    device: torch.device
    first: int
    words: int
    dtype: torch.dtype


Value = float | _Kept
_Read = Callable[[Any], Any]


class Parts(NamedTuple):
    """States that are merged into: see ``HostWindow``; the rows of scalars one by one."""

    rows: Sequence[np.ndarray]
    counts: np.ndarray
    moments: np.ndarray


class _Store:
    """What one device keeps of a window, as int32 words; and its histograms, int64 of shape ``[rows, columns]``."""

    def __init__(self, device: torch.device, rows: int):
        self._device, self._rows = device, rows
        self._pieces: list[tuple[torch.Tensor, int]] = []
        self._counts: torch.Tensor | None = None
        self.words = self._counted = 0

    def keep(self, tensor: torch.Tensor) -> _Kept:
        flat = tensor.detach().reshape(-1)
        if flat.dtype not in _WIDE:
            flat = flat.to(torch.float32 if flat.is_floating_point() else torch.int32)
        words = flat.contiguous().view(torch.int32)
        number, first = words.numel(), self.words
        piece, used = self._pieces[-1] if self._pieces else (None, 0)
        if piece is None or used + number > piece.numel():
            size = max(number, _PIECE_WORDS)
            piece, used = torch.empty(size, dtype=torch.int32, device=self._device), 0
            self._pieces.append((piece, 0))
        if number:
            piece[used : used + number].copy_(words)
        self._pieces[-1] = piece, used + number
        self.words += number
        return _Kept(self._device, first, number, flat.dtype)

    def row(self, slot: int) -> torch.Tensor:
        if self._counts is None:
            self._counts = torch.zeros((self._rows, HEADER + CELLS), dtype=torch.int64, device=self._device)
        self._counted = max(self._counted, slot + 1)
        return self._counts[slot]

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Wait for the device, once; return the words and the rows of counts."""
        parts = [piece[:used] for piece, used in self._pieces if used]
        if self._counts is not None and self._counted:
            parts.append(self._counts[: self._counted].reshape(-1).view(torch.int32))
        if not parts:
            return np.empty(0, np.int32), np.empty((0, HEADER + CELLS), np.int64)
        words = (parts[0] if len(parts) == 1 else torch.cat(parts)).to("cpu").numpy()
        return words[: self.words], words[self.words :].view(np.int64).reshape(-1, HEADER + CELLS)

    def reset(self) -> None:
        self._pieces = [(piece, 0) for piece, _ in self._pieces[:1]]
        if self._counts is not None and self._counted:
            self._counts[: self._counted].zero_()
        self.words = self._counted = 0


class Arrived(NamedTuple):
    """What was logged on such devices in a window, on the host, in the order in which it was logged."""

    entries: list[tuple[Callable[..., None], tuple[Any, ...]]]
    words: dict[torch.device, np.ndarray]
    counts: list[np.ndarray]

    def merge_into(self, parts: Parts) -> None:
        """Merge it into what was logged before."""
        for counts in self.counts:
            parts.counts[: len(counts)] += counts
        for merge, arguments in self.entries:
            merge(parts, self._read, *arguments)

    def _read(self, value: Value) -> torch.Tensor | float:
        if not isinstance(value, _Kept):
            return value
        words = self.words[value.device][value.first : value.first + value.words]
        return torch.from_numpy(words.copy()).view(value.dtype)


class PlainBank:
    """What is logged on such devices until the window ends; ``rows`` is the number of histograms at most."""

    def __init__(self, rows: int):
        self._rows = rows
        self._stores: dict[torch.device, _Store] = {}
        self._entries: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._edges: dict[tuple[Any, ...], torch.Tensor] = {}

    def merge(self, row: int, slots: list[int], values: Sequence[Any], lane: int, weight: Any) -> None:
        """Merge a number or a tensor of one element into each slot (-1 is none), for a row of the window to be."""
        pairs = [(slot, self._keep(value)) for slot, value in zip(slots, values, strict=True) if slot >= 0]
        self._entries.append((_merge_scalars, (row, pairs, lane, self._keep(weight))))

    def merge_vector(
        self,
        row: int,
        slots: list[int],
        values: Sequence[torch.Tensor],
        is_max: bool,
        finish: Callable[..., torch.Tensor],
        scale: Any,
    ) -> None:
        """Merge what ``finish`` makes of vectors, a number for each slot; what no column has is no slot."""
        kept = [self._keep(value) for value in values]
        self._entries.append((_merge_vector, (row, slots, kept, is_max, finish, self._keep(scale))))

    def count(self, values: torch.Tensor, slot: int, step: int, binning: tuple[Any, ...]) -> bool:
        """Count a population by ``Binning.parameters``; return False if it is large and float32 cannot hold it."""
        if values.numel() <= _KEPT_ELEMENTS:
            self._entries.append((_write, (histogram_, slot, step, self._keep(values), binning)))
            return True
        if values.dtype not in _EXACT and (binning[0] != INTEGER or values.is_floating_point()):
            return False
        with torch.inference_mode(False), torch.no_grad():
            self._count_large(values, slot, step, binning)
        return True

    def _count_large(self, values: torch.Tensor, slot: int, step: int, binning: tuple[Any, ...]) -> None:
        store = self._store(values.device)
        chunks = values.detach().reshape(-1).split(_CHUNK)
        kept = [store.keep(self._count_there(chunk, store.row(slot), *binning)) for chunk in chunks]
        self._entries.append((_merge_statistics, (slot, step, kept)))

    def add_counts(self, values: torch.Tensor, slot: int, step: int) -> None:
        """Add counts that are counts already; see ``count``."""
        self._entries.append((_write, (add_counts_, slot, step, self._keep(values), ())))

    def copy_to_host(self) -> Arrived:
        """Copy what was logged to the host, which waits once for each device that was logged from; change nothing."""
        read = {device: store.read() for device, store in self._stores.items()}
        words = {device: words for device, (words, _) in read.items()}
        return Arrived(list(self._entries), words, [counts for _, counts in read.values() if len(counts)])

    def reset(self) -> None:
        """Forget what was logged."""
        self._entries.clear()
        for store in self._stores.values():
            store.reset()

    @property
    def is_used(self) -> bool:
        """Whether anything was logged."""
        return bool(self._entries)

    @property
    def is_full(self) -> bool:
        """Whether so much was logged without a step that it should be merged now."""
        return len(self._entries) > _MOST_ENTRIES or any(store.words > _MOST_WORDS for store in self._stores.values())

    def _store(self, device: torch.device) -> _Store:
        if device not in self._stores:
            self._stores[device] = _Store(device, self._rows)
        return self._stores[device]

    def _keep(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if value.device.type != "cpu":
            with torch.inference_mode(False), torch.no_grad():
                return self._store(value.device).keep(value)
        return float(value.item()) if value.numel() == 1 and value.dim() == 0 else value.detach().clone()

    def _count_there(
        self, chunk: torch.Tensor, row: torch.Tensor, kind: int, bins: int, low: float, high: float
    ) -> torch.Tensor:
        """Add to a row of counts; return the statistics, float32 of shape ``[7]``: see ``_merge_statistics``."""
        values = chunk.to(torch.float32)
        is_other = ~(values.abs() < torch.inf)
        column = self._cell(chunk, values, kind, bins, low, high) + HEADER
        column.masked_fill_(is_other, NAN).masked_fill_(values == torch.inf, POSINF)
        column.masked_fill_(values == -torch.inf, NEGINF)
        counted = torch.zeros(HEADER + CELLS, dtype=torch.int32, device=chunk.device)
        counted.scatter_add_(0, column.to(torch.int64), torch.ones_like(column))
        counted[ZEROS] = (values == 0).sum(dtype=torch.int32)
        row.add_(counted)
        smallest, largest = (
            values.masked_fill(is_other, torch.inf).amin(),
            values.masked_fill(is_other, -torch.inf).amax(),
        )
        # A power of two, so that no bit is lost by it, and no square is too large or small.
        scale = (torch.maximum(smallest.abs(), largest.abs()).view(torch.int32) & 0x7F800000).view(torch.float32)
        scale = scale.masked_fill(scale == 0, 1.0)
        scaled = (values / scale).masked_fill_(is_other, 0.0)
        number = (~is_other).sum(dtype=torch.float32)
        pivot = scaled.sum() / number
        around = (scaled - pivot).masked_fill_(is_other, 0.0)
        return torch.stack([smallest, largest, scale, number, pivot, around.sum(), (around * around).sum()])

    def _cell(
        self, chunk: torch.Tensor, values: torch.Tensor, kind: int, bins: int, low: float, high: float
    ) -> torch.Tensor:
        """Return the cell of each finite value, int32; see ``binning``."""
        if kind == EXPONENTIAL:
            return (values.view(torch.int32) >> (23 - mantissa_bits(bins))) & (bins - 1)
        if kind == INTEGER:
            whole = torch.floor(values) if chunk.is_floating_point() else chunk
            whole = whole.to(torch.int32) if whole.dtype in _EXACT[3:] else whole
            return whole.clamp(-1, bins).to(torch.int32) + 1
        key = (chunk.device, bins, low, high)
        if key not in self._edges:
            edges = linear_edges(bins, low, high)
            with np.errstate(over="ignore"):
                edges[-1] = np.nextafter(edges[-1], np.float32(np.inf))  # the last bin is closed
            self._edges[key] = torch.from_numpy(edges).to(chunk.device)
        return torch.bucketize(values, self._edges[key], out_int32=True, right=True)


def _merge_scalars(
    parts: Parts, read: _Read, row: int, pairs: Sequence[tuple[int, Any]], lane: int, weight: Any
) -> None:
    flat: Any = parts.rows[row].reshape(-1)  # a buffer, of which its stubs know nothing
    state, factor = memoryview(flat), float(read(weight))
    for slot, value in pairs:
        merge_number(state, parts.rows[row].shape[1], slot, lane, float(read(value)), factor)


def _merge_vector(
    parts: Parts, read: _Read, row: int, slots: list[int], kept: list[Any], is_max: bool, finish: Any, scale: Any
) -> None:
    wide = [torch.as_tensor(read(one), device="cpu").to(torch.float64) for one in kept]
    of_scale = None if scale is None else torch.as_tensor(read(scale), device="cpu").to(torch.float64)
    numbers = finish(wide, of_scale).tolist()
    columns = parts.rows[row].shape[1]
    pairs = [(slot, number) for slot, number in zip(slots, numbers, strict=True) if slot < columns]
    _merge_scalars(parts, read, row, pairs, MAX if is_max else SUM, 1.0)


def _write(
    parts: Parts, read: _Read, write: Callable[..., None], slot: int, step: int, kept: Any, binning: tuple[Any, ...]
) -> None:
    counts, moments = (torch.from_numpy(part) for part in (parts.counts, parts.moments))
    write(read(kept), counts, moments, step, slot, *binning)


def _merge_statistics(parts: Parts, read: _Read, slot: int, step: int, kept: list[_Kept]) -> None:
    moments = parts.moments[slot]
    for one in kept:
        smallest, largest, scale, number, pivot, total, squares = read(one).tolist()
        if number:
            moments[Moment.SUM] += scale * (total + number * pivot)
            moments[Moment.SUM_SQUARES] += scale**2 * (squares + pivot * (2 * total + number * pivot))
            moments[Moment.MIN] = min(moments[Moment.MIN], smallest)
            moments[Moment.MAX] = max(moments[Moment.MAX], largest)
    parts.counts[slot, CALLS] += 1
    parts.counts[slot, LAST_STEP] = step
