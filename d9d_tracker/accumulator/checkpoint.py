"""The state of a tracker: what a checkpoint holds, how it is read back, divided among ranks, and refused.

Nothing else knows the format. A state is four plain values, so that it is as large as what is in use, and a fresh
tracker's state is a template that ``torch.distributed.checkpoint`` loads into: ``version``; ``backend`` and ``table``,
JSON text; ``arrays``, the numbers, an ``.npz`` file in base64.
"""

import base64
import functools
import io
import logging
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, TypeAdapter

from d9d_tracker.points import Points
from d9d_tracker.series.registry import ContextItems, HistogramSeries, ScalarSeries
from d9d_tracker.windows.host_window import HostWindow, Tail, contradictions, empty_window, merge_windows
from d9d_tracker.windows.moving import Moving
from d9d_tracker.windows.spread import completed, expand, merge_expanded, of_spread
from d9d_tracker_kernels import CALLS, CELLS, COUNT, HEADER, LANES, MOMENTS

from .buffers import Buffers
from .clock import Clock
from .late import Late

logger = logging.getLogger("d9d_tracker")

VERSION = 2
Total = tuple[tuple[str, ContextItems], float]
_KEYS = ("version", "backend", "table", "arrays")


@dataclass
class BackendState:
    """What belongs to the backend.

    Attributes:
        type: Name of the tracker's type.
        state: The tracker's own state, plain JSON values.
        backlog: Name of the run's backlogs; None if no run was opened.
        kept: Windows that a backend had not accepted, which its backlog held, by the backend's name.
    """

    type: str
    state: dict[str, Any]
    backlog: str | None = None
    kept: dict[str, list[int]] = field(default_factory=dict)


@dataclass
class _Steps:
    """Series, and the rows of their values."""

    scalars: list[ScalarSeries]
    histograms: list[HistogramSeries]
    steps: list[NonNegativeInt]
    times: list[float]


@dataclass
class _Table(_Steps):
    """The structured part of a state. The last of the steps is the current one; the others are filed."""

    resolution: Literal["step", "window"]
    first: NonNegativeInt
    passed: NonNegativeInt
    windows: NonNegativeInt
    tail: _Steps | None = None
    late: str = ""
    tail_late: str = ""
    expanded: _Steps | None = None
    moving: str = ""
    totals: list[Total] = field(default_factory=list)


_BACKEND = TypeAdapter(BackendState)
_TABLE = TypeAdapter(_Table)


@dataclass
class Snapshot:
    """Everything that a tracker needs to go on.

    Attributes:
        resolution: Whether scalars have one point per ``"step"`` or per ``"window"``.
        first: The step that the window began with.
        passed: How many steps of the window have ended.
        windows: Index of the next window.
        window: The filed rows and, last, the current step; the histograms of the window.
        tail: What was written for the current step already, if anything.
        late: What came finished while the window was open.
        expanded: What other ranks of an earlier life logged to series of ``scope="spread"``, if anything.
        moving: What has left the device and is not with the backends.
        totals: The running totals that were delivered, by name and context.
        backend: What belongs to the backend.
    """

    resolution: Literal["step", "window"]
    first: int
    passed: int
    windows: int
    window: HostWindow
    tail: Tail | None
    late: Late
    backend: BackendState
    expanded: HostWindow | None = None
    moving: Moving = field(default_factory=Moving)
    totals: list[Total] = field(default_factory=list)

    @property
    def rewind_to(self) -> int:
        """The step from which on the backends must hold nothing."""
        return max(int(min(self.first, self.moving.first)), self.moving.unwritten)

    @property
    def holds_values(self) -> bool:
        """Whether something was logged that is not written."""
        return bool((self.window.lanes[:, COUNT] > 0).any() or (self.window.counts[:, CALLS] > 0).any())

    @property
    def clock(self) -> Clock:
        """Where the run stands."""
        steps, times = self.window.steps, self.window.times
        return Clock(
            steps[-1],
            times[-1],
            self.first,
            steps[:-1],
            times[:-1],
            rows=len(steps) - 1,
            passed=self.passed,
            windows=self.windows,
        )


def save(snapshot: Snapshot) -> dict[str, Any]:
    """Return a state: plain values that load with ``torch.load(..., weights_only=True)``."""
    window, tail = snapshot.window, None if snapshot.tail is None else snapshot.tail.as_window()
    expanded = snapshot.expanded
    table = _Table(
        window.scalars,
        window.histograms,
        window.steps,
        window.times,
        snapshot.resolution,
        snapshot.first,
        snapshot.passed,
        snapshot.windows,
        None if tail is None else _Steps(tail.scalars, tail.histograms, tail.steps, tail.times),
        _to_text(snapshot.late),
        "" if snapshot.tail is None else _to_text(Late(snapshot.tail.late)),
        None if expanded is None else _Steps(expanded.scalars, [], expanded.steps, expanded.times),
        snapshot.moving.dump(),
        snapshot.totals,
    )
    arrays = _arrays_of(window, "") | ({} if tail is None else _arrays_of(tail, "tail_"))
    arrays |= {} if expanded is None else _arrays_of(expanded, "expanded_")
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return {
        "version": VERSION,
        "backend": _BACKEND.dump_json(snapshot.backend).decode(),
        "table": _TABLE.dump_json(table).decode(),
        "arrays": base64.b64encode(zlib.compress(file.getvalue(), 1)).decode(),
    }


def read(state: Any) -> Snapshot:
    """Read a state of a single process, or of one rank.

    Raises:
        ValueError: If it is foreign, of another version, or damaged.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"the state of a d9d_tracker is a dict, not {type(state).__name__}")
    version = state.get("version")
    if version not in (None, VERSION):
        raise ValueError(
            f"the state has version {version!r} and this d9d_tracker reads version {VERSION}; load it with the "
            "d9d_tracker that wrote it, or a newer one"
        )
    missing = [key for key in _KEYS if key not in state]
    if missing:
        raise ValueError(f"this is not the state of a d9d_tracker: it has no {', '.join(missing)}")
    try:
        backend, table, arrays = _parse(state)
        _check(table)
        tail = None if table.tail is None else Tail.of(_window(table.tail, arrays, "tail_"), None)
        if tail is not None:
            tail.late = _from_text(table.tail_late).records
        return Snapshot(
            table.resolution,
            table.first,
            table.passed,
            table.windows,
            _window(table, arrays, ""),
            tail,
            _from_text(table.late),
            backend,
            None if table.expanded is None else _window(table.expanded, arrays, "expanded_"),
            Moving.load(table.moving),
            table.totals,
        )
    except (TypeError, ValueError, KeyError, AttributeError, OSError, zlib.error) as error:
        raise ValueError(f"the state of the tracker is damaged: {error}") from error


def check_fit(snapshot: Snapshot, buffers: Buffers) -> None:
    """Refuse a state that does not fit into buffers, which are not touched.

    Raises:
        ValueError: If the resolution or the length of the window differs, or there are too many series.
    """
    if snapshot.resolution != buffers.resolution:
        raise ValueError(
            f"the state was saved with accumulator.scalar_resolution={snapshot.resolution!r}; set it to resume"
        )
    if snapshot.passed >= buffers.sync_every:
        raise ValueError(
            f"the state holds {snapshot.passed} steps of a window and accumulator.sync_every is now "
            f"{buffers.sync_every}; set it to more than {snapshot.passed} to resume"
        )
    for saved, registry, capacity_field in (
        (snapshot.window.scalars, buffers.scalar_series, "max_scalars"),
        (snapshot.window.histograms, buffers.histogram_series, "max_histograms"),
    ):
        if len(saved) > registry.capacity:
            raise ValueError(
                f"the state holds {len(saved)} series and accumulator.{capacity_field} is {registry.capacity}; set it "
                f"to {len(saved)} or more to resume"
            )


def apply(snapshot: Snapshot, buffers: Buffers) -> None:
    """Put a state that fits into buffers."""
    buffers.start()
    window, rows = snapshot.window, len(snapshot.window.steps) - 1
    scalars = [buffers.scalar_series.slot(series) for series in window.scalars]
    histograms = [buffers.histogram_series.slot(series) for series in window.histograms]
    lanes, counts, moments = (
        torch.from_numpy(array).to(buffers.device) for array in (window.lanes, window.counts, window.moments)
    )
    for saved, slot in enumerate(scalars):
        buffers.scalars.current[:, slot] = lanes[-1, :, saved]
        buffers.scalars.window[:rows, :, slot] = lanes[:rows, :, saved]
    for saved, slot in enumerate(histograms):
        buffers.histograms.counts[slot] = counts[saved]
        buffers.histograms.moments[slot] = moments[saved]
    buffers.restore(snapshot.clock, Late(snapshot.late.records[:], dict(snapshot.late.hparams)))


def wrap(state: dict[str, Any], rank: int, size: int) -> dict[str, Any]:
    """Return the state of one rank under a key of its own.

    ``torch.distributed.checkpoint`` keeps one copy of what several ranks save under the same key; with a key per rank
    it keeps all of them.

    Args:
        state: What this rank is to find again.
        rank: This rank.
        size: Number of ranks.
    """
    return {"world_size": size, "ranks": {str(rank): state}}


def saved_ranks(rank: int, size: int, saved_size: int) -> range:
    """Return which saved ranks' values a rank goes on with, so that each is taken once and their order stays."""
    if size >= saved_size:
        return range(rank, min(rank + 1, saved_size))
    return range(rank * saved_size // size, (rank + 1) * saved_size // size)


def read_own(state: Any, rank: int, size: int) -> Snapshot:
    """Read what a rank goes on with, from a state that any number of ranks saved.

    Args:
        state: A state of a single process, which rank 0 takes over, or of a job.
        rank: This rank.
        size: Number of ranks now.

    Raises:
        ValueError: If the states of the saved ranks that this one needs are not in it, or it is damaged.
    """
    if not isinstance(state, Mapping) or "ranks" not in state:
        snapshot = read(state)
        if rank > 0 and snapshot.holds_values:
            logger.warning(
                "the state is that of a single process: rank 0 goes on with what was logged in its unfinished window, "
                "rank %d with nothing. Of several ranks, each has a state with its number in it",
                rank,
            )
        return _emptied(snapshot) if rank > 0 else snapshot
    ranks, saved_size = state["ranks"], state.get("world_size")
    if not isinstance(ranks, Mapping) or not isinstance(saved_size, int):
        raise ValueError("the state of the tracker is damaged: it names no ranks")
    wanted = [str(saved) for saved in saved_ranks(rank, size, saved_size)]
    if set(wanted) <= set(ranks) and (wanted or "0" in ranks):
        if not wanted:
            return _emptied(read(ranks["0"]))
        snapshots = {int(saved): read(ranks[saved]) for saved in wanted}
        is_same = list(snapshots) == [rank]
        return _merged(list(snapshots.values()) if is_same else [_divided(one, q) for q, one in snapshots.items()])
    if saved_size == size and set(ranks) == {"0"}:
        logger.warning(
            "the state holds the values of rank 0 alone: what rank %d logged in the unfinished window is not in it. "
            "Save with torch.distributed.checkpoint to keep the values of all ranks",
            rank,
        )
        return _emptied(read(ranks["0"]))
    raise ValueError(
        f"the state was saved by {saved_size} ranks, this is rank {rank} of {size}, and the values it is to go on with "
        f"(saved ranks {', '.join(wanted) or '0'}) are not all here; load the checkpoint with "
        "d9d_tracker.distributed.load(tracker, checkpoint_id), which divides the saved ranks among the new ones"
    )


def _merged(snapshots: list[Snapshot]) -> Snapshot:
    first = snapshots[0]
    windows = [snapshot.window for snapshot in snapshots]
    if first.resolution == "window":  # there is one row, and it is that of the current step
        now = max(window.steps[-1] for window in windows)
        windows = [replace(window, steps=[*window.steps[:-1], now]) for window in windows]
    for window in windows[1:]:
        words = contradictions(windows[0].scalars, window.scalars)
        for contradiction in words + contradictions(windows[0].histograms, window.histograms):
            logger.error("%s", contradiction)
    merged = functools.reduce(merge_windows, windows)
    expanded = [snapshot.expanded for snapshot in snapshots if snapshot.expanded is not None]
    held = [snapshot.moving.held for snapshot in snapshots if snapshot.moving.held is not None]
    return replace(
        first,
        window=merged,
        expanded=functools.reduce(merge_expanded, expanded) if expanded else None,
        moving=Moving(
            [one for snapshot in snapshots for one in snapshot.moving.windows],
            functools.reduce(merge_expanded, held) if held else None,
            first.moving.taken,
            first.moving.unwritten,
        ),
        late=Late([record for snapshot in reversed(snapshots) for record in snapshot.late.records], first.late.hparams),
        first=min(snapshot.first for snapshot in snapshots),
        passed=max(len(merged.steps) - 1, *(snapshot.passed for snapshot in snapshots)),
        windows=max(snapshot.windows for snapshot in snapshots),
    )


def _divided(snapshot: Snapshot, rank: int) -> Snapshot:
    """Expand what a saved rank has logged to series of ``scope="spread"``: its number is not that of who goes on."""
    window, tail = snapshot.window, snapshot.tail
    expanded = expand(of_spread(completed(window, tail), True), rank)
    if snapshot.expanded is not None:
        expanded = merge_expanded(expanded, snapshot.expanded)
    rest = of_spread(window, False)
    if tail is not None:
        tail = replace(tail, lanes={series: lanes for series, lanes in tail.lanes.items() if not series.spread})
    return replace(snapshot, window=rest, tail=tail, expanded=expanded if expanded.scalars else None)


def _emptied(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot at the same point of the run, without values."""
    window = snapshot.window
    nothing = empty_window(0, window.steps, window.times, window.scalars, window.histograms)
    return replace(
        snapshot,
        window=nothing,
        tail=None,
        late=Late(),
        expanded=None,
        moving=Moving(),
        backend=replace(snapshot.backend, kept={}),
    )


def _to_text(late: Late) -> str:
    return base64.b64encode(late.points().dump()).decode() if late else ""


def _from_text(text: str) -> Late:
    return Late.of(Points.load(base64.b64decode(text, validate=True))) if text else Late()


def _arrays_of(window: HostWindow, prefix: str) -> dict[str, np.ndarray]:
    return {f"{prefix}{name}": getattr(window, name) for name in ("lanes", "counts", "moments")}


def _parse(state: Mapping[str, Any]) -> tuple[BackendState, _Table, Mapping[str, np.ndarray]]:
    file = io.BytesIO(zlib.decompress(base64.b64decode(state["arrays"], validate=True)))
    arrays = np.load(file, allow_pickle=False)
    return _BACKEND.validate_json(state["backend"]), _TABLE.validate_json(state["table"]), dict(arrays)


def _window(table: _Steps, arrays: Mapping[str, np.ndarray], prefix: str) -> HostWindow:
    rows, scalars, histograms = len(table.steps), len(table.scalars), len(table.histograms)
    expected = {
        "lanes": ((rows, LANES, scalars), np.float64),
        "counts": ((histograms, HEADER + CELLS), np.int64),
        "moments": ((histograms, MOMENTS), np.float64),
    }
    for name, (shape, dtype) in expected.items():
        array = arrays[f"{prefix}{name}"]
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(f"{prefix}{name} is {array.dtype} of shape {array.shape}, not {dtype} of shape {shape}")
    if len(table.times) != rows:
        raise ValueError(f"there are {len(table.times)} times for {rows} steps")
    return HostWindow(
        index=0,
        steps=table.steps,
        times=table.times,
        lanes=arrays[f"{prefix}lanes"],
        counts=arrays[f"{prefix}counts"],
        moments=arrays[f"{prefix}moments"],
        scalars=table.scalars,
        histograms=table.histograms,
    )


def _check(table: _Table) -> None:
    filed, step = table.steps[:-1], table.steps[-1]
    names = [[(series.name, series.context) for series in part] for part in (table.scalars, table.histograms)]
    checks = {
        "two series have the same name and context": all(len(set(part)) == len(part) for part in names),
        "a series has no name": all(name for part in names for name, _ in part),
        "the steps of the window do not rise": filed == sorted(set(filed)),
        "the window is ahead of the step": table.first <= min([*filed, step]) and max(filed, default=0) <= step,
        "the window has more rows than steps": len(filed) <= table.passed,
    }
    for fault, holds in checks.items():
        if not holds:
            raise ValueError(fault)
