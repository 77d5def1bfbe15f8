"""Where windows of several ranks become one: a short head to all, a maximum, two sums, and a word from rank 0."""

import hashlib
from typing import Any, NamedTuple

import numpy as np
import torch

from d9d_tracker.log import logger
from d9d_tracker.series.series import HistogramSeries, ScalarSeries, label
from d9d_tracker.windows.host_window import HostWindow, arranged, contradictions, union_of_series
from d9d_tracker.windows.in_transit import SERIES, pack, unpack
from d9d_tracker.windows.spread import merge_expanded
from d9d_tracker_kernels.binning import CALLS
from d9d_tracker_kernels.lanes import COUNT

from .group import Group, as_tensor
from .reduction import reduce_window

END = np.iinfo(np.int64).max


class Met(NamedTuple):
    """What a meeting gives: the window and notes on rank 0 alone, of each member its point and its window's index."""

    window: HostWindow
    points: dict[int, int]
    notes: list[tuple[int, bytes]]
    indices: dict[int, int]


class Meeting:
    """Merges one window of every rank, again and again, in whatever groups they meet.

    A series of one rank (``scope="rank"``) is no part of the sums: it travels to rank 0 by itself.
    """

    def __init__(self, rank: int):
        self._rank = rank
        self._known: set[str] = set()
        self._is_misaligned = False

    def merge(self, group: Group, members: list[int], window: HostWindow, point: int, note: bytes) -> Met:
        """Merge a window, which is not changed, with those of the other members, in the order of the group.

        ``point`` says up to where this rank's values are complete: twice its last step, plus one if that has ended; END
        if it leaves. When it returns on rank 0, that has the values of all, of which the others are still to hear.
        """
        window, own = self._without_own(window)
        table = SERIES.dump((window.steps, [], window.scalars, window.histograms))
        digest = int.from_bytes(hashlib.blake2b(table, digest_size=8).digest(), "little", signed=True)
        head = torch.tensor([digest, point, len(own), len(note), window.index], device="cpu")
        digests, points, owns, notes, indices = torch.stack(group.all_gather(head), dim=1).tolist()
        if len(set(digests)) > 1:
            window = self._aligned(window, group)
        merged, noted = reduce_window(window, group), []
        if any(owns) or any(notes):
            sizes = [own + note for own, note in zip(owns, notes, strict=True)]
            parts = [part.numpy().tobytes() for part in group.gather(as_tensor(own + note, max(sizes)))]
            for rank, part, end, size in zip(members, parts, owns, sizes, strict=bool(parts)):
                merged = merge_expanded(merged, unpack(part[:end])) if end else merged
                noted += [(rank, part[end:size])] if size > end else []
        found = dict(zip(members, points, strict=True))
        self._report_misaligned(found)
        return Met(merged, found, noted, dict(zip(members, indices, strict=True)))

    def _aligned(self, window: HostWindow, group: Group) -> HostWindow:
        """Give the window the rows and slots that all ranks' windows have together."""
        table = SERIES.dump((window.steps, window.times, window.scalars, window.histograms))
        tables = [SERIES.load(data) for data in group.all_gather_bytes(table)]
        began: dict[int, float] = {}
        scalars: list[ScalarSeries] = []
        histograms: list[HistogramSeries] = []
        for steps, times, more_scalars, more_histograms in tables:
            words = contradictions(scalars, more_scalars) + contradictions(histograms, more_histograms)
            for word in words if self._rank == 0 else []:
                if word not in self._known:
                    self._known.add(word)
                    logger.error("%s", word)
            began = dict(zip(steps, times, strict=True)) | began
            scalars = union_of_series(scalars, more_scalars)
            histograms = union_of_series(histograms, more_histograms)
        self._report_partly_known(tables, [*scalars, *histograms])
        steps = sorted(began)
        return arranged(window, steps, [began[step] for step in steps], scalars, histograms)

    def _without_own(self, window: HostWindow) -> tuple[HostWindow, bytes]:
        """Divide off the series of this rank alone, as bytes."""
        tag = ("rank", str(self._rank))
        scalars = np.array([tag in series.context for series in window.scalars], dtype=bool)
        histograms = np.array([tag in series.context for series in window.histograms], dtype=bool)
        if not scalars.any() and not histograms.any():
            return window, b""
        has_value, has_call = (window.lanes[:, COUNT] > 0).any(axis=0), window.counts[:, CALLS] > 0
        own = window.only(np.flatnonzero(scalars & has_value), np.flatnonzero(histograms & has_call))
        return window.only(np.flatnonzero(~scalars), np.flatnonzero(~histograms)), pack(own)

    def _report_misaligned(self, points: dict[int, int]) -> None:
        ended = {point: rank for rank, point in points.items() if point != END}
        if self._rank == 0 and len(ended) > 1 and not self._is_misaligned:
            self._is_misaligned = True
            (least, first), (most, second) = min(ended.items()), max(ended.items())
            words = (
                "windows end at different steps: %d on rank %d, %d on rank %d. Call set_step and flush alike on all "
                "ranks; values are merged by step, and those behind wait for the next window"
            )
            logger.warning(words, least // 2, first, most // 2, second)

    def _report_partly_known(self, tables: list[Any], all_series: list[ScalarSeries | HistogramSeries]) -> None:
        present = [table for table in tables if table[0]]
        new = []
        for series in all_series if self._rank == 0 else ():
            known = sum(any(series in part for part in table[2:]) for table in present)
            words = label(series.name, series.context)
            if known < len(present) and words not in self._known:
                self._known.add(words)
                new.append(f"{words} ({known} of {len(tables)})")
        if new:
            logger.info("known to some ranks only: %s", "; ".join(new))
