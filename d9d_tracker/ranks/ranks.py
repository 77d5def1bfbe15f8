"""The ranks of an open run: window by window, off the training thread, rank 0 gets what all of them logged."""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pydantic import TypeAdapter

from d9d_tracker.accumulator.host_window import (
    HostWindow,
    arranged,
    contradictions,
    empty_window,
    merge_windows,
    union_of_series,
)
from d9d_tracker.accumulator.registry import HistogramSeries, ScalarSeries, label
from d9d_tracker_kernels import CALLS, COUNT, LAST_STEP

from .exchange import as_tensor, exchange_bytes
from .finish import finish
from .heartbeat import Heartbeat
from .reduction import reduce_window
from .spelling import spell

logger = logging.getLogger("d9d_tracker")

_END = np.iinfo(np.int64).max
_SERIES = TypeAdapter(tuple[list[int], list[float], list[ScalarSeries], list[HistogramSeries]])


class Ranks:
    """The ranks that share a run.

    Every rank meets the others with its n-th window: one all_gather of a short head, an exchange of the tables of
    series when they differ, a maximum and two sums. A series of one rank (``scope="rank"``) is no part of the sums:
    it travels to rank 0 by itself. A rank that closes early takes part with nothing until all have closed.

    When a rank dies, or is waited for beyond the group's timeout, gloo closes the group. From then on rank 0 has its
    own values alone; it says so once, and which ranks are missing. Nothing more is built for that: the job is dying,
    and who resumes from its checkpoint logs those steps again.

    Args:
        group: A gloo group of its own.

    Attributes:
        is_lost: Whether the group is closed.
    """

    def __init__(self, group: Any):
        self.is_lost = False
        self._group = group
        self._rank, self._size = dist.get_rank(group), dist.get_world_size(group)
        self._heartbeat = Heartbeat(group.get_group_store(), self._rank, self._size)
        self._held: HostWindow | None = None  # on rank 0: rows of steps that some rank may still log to
        self._closed: set[int] = set()
        self._known: set[str] = set()
        self._is_misaligned = False
        self._is_over = False
        self._step = 0  # the last one of this rank's last window
        self._note = b""
        self._notes: list[tuple[int, bytes]] = []

    def reduce(self, window: HostWindow, ended: bool, is_last: bool = False, note: bytes = b"") -> HostWindow | None:
        """Merge a window with those of the other ranks; every rank calls it for its n-th window.

        Args:
            window: This rank's window; it is not kept.
            ended: Whether its last step has ended.
            is_last: Whether this rank closes the run with it.
            note: What rank 0 is to know besides; it costs a message, so there should seldom be one.

        Returns:
            On rank 0, the rows up to the last step for which every rank has sent its values; None on the others.
        """
        self._step, self._note = window.steps[-1], note
        return self._meet(window, _END if is_last else 2 * self._step + ended)

    def take_notes(self) -> list[tuple[int, bytes]]:
        """Return, on rank 0, the notes that came since the last call, each with its rank; one's own too."""
        notes, self._notes = self._notes, []
        return notes

    def finish(self) -> Iterator[HostWindow]:
        """Take part, with nothing of one's own, until all ranks have closed the run.

        Yields:
            On rank 0, windows of what other ranks logged after its last one.
        """
        while not self._is_over and not self.is_lost:
            merged = self._meet(empty_window(0, [], [], [], []), _END)
            if merged is not None and (merged.steps or merged.histograms):
                yield merged

    def close(self) -> None:
        """End it. The group is kept for the next run of the same job."""
        self._heartbeat.stop()

    def _meet(self, window: HostWindow, point: int) -> HostWindow | None:
        """Merge a window.

        Args:
            window: This rank's window.
            point: Up to where this rank's values are complete: twice its last step, plus one if that has ended.
        """
        if self.is_lost:
            return window if self._rank == 0 else None
        try:
            merged, points = self._merge(window, point)
        except (RuntimeError, ValueError) as error:
            self._lose(error, window)
            merged, points = window, [point]
        self._is_over = min(points) == _END
        if self._rank > 0:
            return None
        if self._held is not None:
            merged, self._held = merge_windows(self._held, merged), None
        self._report_closed(points)
        return self._finished(merged, points)

    def _merge(self, window: HostWindow, point: int) -> tuple[HostWindow, list[int]]:
        window, own = self._without_own(window)
        note, self._note = self._note, b""
        table = _SERIES.dump_json((window.steps, [], window.scalars, window.histograms))
        digest = int.from_bytes(hashlib.blake2b(table, digest_size=8).digest(), "little", signed=True)
        head = torch.tensor([digest, point, len(own), len(note)], device="cpu")
        gathered = [torch.empty_like(head) for _ in range(self._size)]
        finish(dist.all_gather(gathered, head, group=self._group, async_op=True))
        digests, points, owns, notes = torch.stack(gathered, dim=1).tolist()
        if len(set(digests)) > 1:
            window = self._aligned(window)
        merged = reduce_window(window, self._group)
        if any(owns) or any(notes):
            merged = self._with_own(merged, own + note, owns, notes)
        self._report_misaligned(points)
        return merged, points

    def _aligned(self, window: HostWindow) -> HostWindow:
        """Give the window the rows and slots that all ranks' windows have together."""
        table = _SERIES.dump_json((window.steps, window.times, window.scalars, window.histograms))
        tables = [_SERIES.validate_json(data.tobytes()) for data in exchange_bytes(table, self._group)]
        began: dict[int, float] = {}
        scalars: list[ScalarSeries] = []
        histograms: list[HistogramSeries] = []
        for steps, times, more_scalars, more_histograms in tables:
            words = contradictions(scalars, more_scalars) if scalars else []
            words += contradictions(histograms, more_histograms) if histograms else []
            for word in words:
                self._say_once(logging.ERROR, word)
            began = dict(zip(steps, times, strict=True)) | began
            scalars = union_of_series(scalars, more_scalars)
            histograms = union_of_series(histograms, more_histograms)
        if self._rank == 0:
            self._report_partly_known(tables, scalars, histograms)
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
        table = _SERIES.dump_json((own.steps, own.times, own.scalars, own.histograms))
        packed = len(table).to_bytes(8, "little") + table + own.pack()
        return window.only(np.flatnonzero(~scalars), np.flatnonzero(~histograms)), packed

    def _with_own(self, merged: HostWindow, data: bytes, owns: list[int], notes: list[int]) -> HostWindow:
        """Add, on rank 0, what each rank keeps for itself, and take the notes: their sizes are known."""
        sizes = [own + note for own, note in zip(owns, notes, strict=True)]
        padded = as_tensor(data, max(sizes))
        parts = [torch.empty_like(padded) for _ in range(self._size)] if self._rank == 0 else None
        finish(dist.gather(padded, parts, group=self._group, group_dst=0, async_op=True))
        for rank, part in enumerate(parts or []):
            theirs = part.numpy().tobytes()[: sizes[rank]]
            if owns[rank]:
                table = 8 + int.from_bytes(theirs[:8], "little")
                numbers = np.frombuffer(theirs[table : owns[rank]], dtype=np.float64)
                merged = merge_windows(merged, HostWindow.of(numbers, 0, *_SERIES.validate_json(theirs[8:table])))
            if notes[rank]:
                self._notes.append((rank, theirs[owns[rank] :]))
        return merged

    def _finished(self, merged: HostWindow, points: list[int]) -> HostWindow:
        """Hold back the rows of steps for which some rank may still send values."""
        least = min(points)
        last = least // 2 if least % 2 or least == points[0] else least // 2 - 1
        rows = sum(step <= last for step in merged.steps)
        if rows == len(merged.steps):
            return merged
        self._held = empty_window(merged.index, merged.steps[rows:], merged.times[rows:], merged.scalars, [])
        self._held.lanes = merged.lanes[rows:].copy()
        counts = merged.counts.copy()  # a histogram cannot be divided by steps: it is filed at one that is finished
        counts[:, LAST_STEP] = np.minimum(counts[:, LAST_STEP], max(0, last))
        return replace(
            merged, steps=merged.steps[:rows], times=merged.times[:rows], lanes=merged.lanes[:rows], counts=counts
        )

    def _lose(self, error: Exception, window: HostWindow) -> None:
        self.is_lost = True
        step = window.steps[0] if window.steps else self._step + 1
        if self._rank > 0:
            logger.error(
                "ranks are gone (%s): what this rank logs from step %d on is not in the run; training goes on",
                error,
                step,
            )
            return
        missing = self._heartbeat.silent()
        logger.error(
            "no values from %s (%s): from step %d on, the run holds rank 0 alone; training goes on",
            spell(missing) if missing else "the other ranks",
            error,
            step,
        )

    def _report_closed(self, points: list[int]) -> None:
        closed = {rank for rank, point in enumerate(points) if point == _END and rank > 0} - self._closed
        if closed and points[0] != _END:
            logger.warning("%s left the run before step %d; it goes on without", spell(closed), self._step)
        self._closed |= closed

    def _report_misaligned(self, points: list[int]) -> None:
        ended = {point: rank for rank, point in enumerate(points) if point != _END}
        if self._rank == 0 and len(ended) > 1 and not self._is_misaligned:
            self._is_misaligned = True
            (least, first), (most, second) = min(ended.items()), max(ended.items())
            logger.warning(
                "windows end at different steps: %d on rank %d, %d on rank %d. Call set_step and flush alike on all "
                "ranks; values are merged by step, and those behind wait for the next window",
                least // 2,
                first,
                most // 2,
                second,
            )

    def _report_partly_known(
        self, tables: list[Any], scalars: list[ScalarSeries], histograms: list[HistogramSeries]
    ) -> None:
        present = [table for table in tables if table[0]]
        new = []
        for series in (*scalars, *histograms):
            known = sum(any(series in part for part in table[2:]) for table in present)
            words = label(series.name, series.context)
            if known < len(present) and words not in self._known:
                self._known.add(words)
                new.append(f"{words} ({known} of {self._size})")
        if new:
            logger.info("known to some ranks only: %s", "; ".join(new))

    def _say_once(self, level: int, words: str) -> None:
        if words not in self._known and self._rank == 0:
            self._known.add(words)
            logger.log(level, "%s", words)
