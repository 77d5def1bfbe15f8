"""The state of a tracker: what a checkpoint holds, how it is read back, and refused; ``job_state.py`` has a job's.

Nothing else knows the format. A state is four plain values, so that it is as large as what is in use, and a fresh
tracker's state is a template that ``torch.distributed.checkpoint`` loads into: ``version``; ``backend`` and ``table``,
JSON text; ``arrays``, the numbers, an ``.npz`` file in base64.
"""

import base64
import io
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from pydantic import NonNegativeInt

from d9d_tracker.bank.buffers import Buffers
from d9d_tracker.points import Points
from d9d_tracker.series.series import ContextItems, HistogramSeries, ScalarSeries
from d9d_tracker.windows.clock import Clock
from d9d_tracker.windows.host_window import HostWindow
from d9d_tracker.windows.in_transit import InTransit, from_text, to_text
from d9d_tracker.windows.late import Late
from d9d_tracker.windows.plain import Plain
from d9d_tracker.windows.window_points import Tail
from d9d_tracker_kernels.binning import CALLS, CELLS, HEADER, MOMENTS
from d9d_tracker_kernels.lanes import COUNT, LANES

from .assembly import State

VERSION = 2
Total = tuple[tuple[str, ContextItems], float]
_KEYS = ("version", "backend", "table", "arrays")


@dataclass
class BackendState:
    """What belongs to the backend: the type and state of its tracker, and the name of the run's backlogs, if any.

    ``kept`` are the windows that backends had not accepted and their backlogs held, by the backend's name.
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
    expanded: str = ""
    moving: str = ""  # what is in transit
    totals: list[Total] = field(default_factory=list)


_BACKEND = Plain(BackendState)
_TABLE = Plain(_Table)


@dataclass
class Snapshot:
    """Everything that a tracker needs to go on.

    Attributes:
        resolution: Whether scalars have one point per ``"step"`` or per ``"window"``.
        first: The step that the window began with.
        passed: How many steps of the window have ended.
        windows: Index of the next window.
        window: The filed rows and, last, the current step; the histograms of the window.
        backend: What belongs to the backend.
        left: What has left the device, and what came late.
    """

    resolution: Literal["step", "window"]
    first: int
    passed: int
    windows: int
    window: HostWindow
    backend: BackendState
    left: State = field(default_factory=State)

    @property
    def rewind_to(self) -> int:
        """The step from which on the backends must hold nothing."""
        return max(int(min(self.first, self.left.in_transit.first)), self.left.in_transit.unwritten)

    @property
    def holds_values(self) -> bool:
        """Whether something was logged that is not written."""
        return bool((self.window.lanes[:, COUNT] > 0).any() or (self.window.counts[:, CALLS] > 0).any())

    @property
    def clock(self) -> Clock:
        """Where the run stands."""
        (*steps, step), (*times, time) = self.window.steps, self.window.times
        return Clock(step, time, self.first, steps, times, len(steps), self.passed, self.windows)


def save(snapshot: Snapshot) -> dict[str, Any]:
    """Return a state: plain values that load with ``torch.load(..., weights_only=True)``."""
    window, left = snapshot.window, snapshot.left
    tail = None if left.tail is None else left.tail.as_window()
    clock = snapshot.resolution, snapshot.first, snapshot.passed, snapshot.windows
    written = None if tail is None else _Steps(*_columns(tail))
    late, tail_late = _late_to_text(left.late), "" if left.tail is None else _late_to_text(Late(left.tail.late))
    expanded = "" if left.expanded is None else to_text(left.expanded)
    moving, totals = left.in_transit.dump(), list(left.totals.items())
    table = _Table(*_columns(window), *clock, written, late, tail_late, expanded, moving, totals)
    arrays = _arrays_of(window, "") | ({} if tail is None else _arrays_of(tail, "tail_"))
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return {
        "version": VERSION,
        "backend": _BACKEND.dump(snapshot.backend).decode(),
        "table": _TABLE.dump(table).decode(),
        "arrays": base64.b64encode(zlib.compress(file.getvalue(), 1)).decode(),
    }


def read(state: Any) -> Snapshot:
    """Read a state of one process; ``ValueError`` if it is foreign, of another version, or damaged."""
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
        backend, table = _BACKEND.load(state["backend"]), _TABLE.load(state["table"])
        file = io.BytesIO(zlib.decompress(base64.b64decode(state["arrays"], validate=True)))
        arrays = dict(np.load(file, allow_pickle=False))
        _check(table)
        tail = None if table.tail is None else Tail.of(_window(table.tail, arrays, "tail_"), None)
        if tail is not None:
            tail.late = _late_from_text(table.tail_late).records
        expanded = from_text(table.expanded) if table.expanded else None
        left = State(tail, _late_from_text(table.late), expanded, InTransit.load(table.moving), dict(table.totals))
        window = _window(table, arrays, "")
        return Snapshot(table.resolution, table.first, table.passed, table.windows, window, backend, left)
    except (TypeError, ValueError, LookupError, AttributeError, OSError, zlib.error) as error:
        raise ValueError(f"the state of the tracker is damaged: {error}") from error


def check_fit(snapshot: Snapshot, buffers: Buffers) -> None:
    """Raise ``ValueError`` for a state that does not fit into buffers, which are not touched."""
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
    late = snapshot.left.late
    buffers.restore(snapshot.clock, Late(late.records[:], dict(late.hparams)))


def _late_to_text(late: Late) -> str:
    return base64.b64encode(late.points().dump()).decode() if late else ""


def _late_from_text(text: str) -> Late:
    points = Points.load(base64.b64decode(text, validate=True)) if text else Points.of([])
    return Late(list(points), points.hparams)


def _columns(window: HostWindow) -> tuple[list[ScalarSeries], list[HistogramSeries], list[int], list[float]]:
    return window.scalars, window.histograms, window.steps, window.times


def _arrays_of(window: HostWindow, prefix: str) -> dict[str, np.ndarray]:
    return {f"{prefix}{name}": getattr(window, name) for name in ("lanes", "counts", "moments")}


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
    lanes, counts, moments = (arrays[f"{prefix}{name}"] for name in expected)
    return HostWindow(0, table.steps, table.times, lanes, counts, moments, table.scalars, table.histograms)


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
