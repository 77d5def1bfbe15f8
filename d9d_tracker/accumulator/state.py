"""The state of a tracker: what a checkpoint holds, how it is read back, and what is refused."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, TypeAdapter, model_validator

from d9d_tracker.config import Binning
from d9d_tracker_kernels import CELLS, HEADER, MOMENTS

from .buffers import Buffers
from .registry import HistogramSeries, Reduction, Registry, ScalarSeries
from .scalars import LANES
from .window import Tail

VERSION = 1
_DTYPES = {
    "current": torch.float64,
    "window": torch.float64,
    "counts": torch.int64,
    "moments": torch.float64,
}


class _Backend(BaseModel):
    """The part of a state that belongs to the backend's tracker, JSON text in the checkpoint."""

    model_config = ConfigDict(extra="forbid")

    type: str
    state: dict[str, Any]


class _Table(BaseModel):
    """The structured part of a state, JSON text in the checkpoint."""

    model_config = ConfigDict(extra="forbid")

    resolution: str
    scalars: list[tuple[str, dict[str, str], Reduction]]
    histograms: list[tuple[str, dict[str, str], Annotated[Binning, Field(discriminator="kind")]]]
    step: NonNegativeInt
    first: NonNegativeInt
    filed: list[NonNegativeInt]
    passed: NonNegativeInt
    windows: NonNegativeInt
    tail_step: NonNegativeInt | None = None
    tail_lanes: dict[int, list[float]] = {}
    tail_counts: dict[int, dict[int, int]] = {}
    tail_moments: dict[int, list[float]] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        scalars, histograms = range(len(self.scalars)), range(len(self.histograms))
        checks = {
            "two series have the same name and context": _distinct(self.scalars) and _distinct(self.histograms),
            "a series has no name": all(name for name, *_ in (*self.scalars, *self.histograms)),
            "the steps of the window do not rise": self.filed == sorted(set(self.filed)),
            "the window is ahead of the step": self.first <= min([*self.filed, self.step])
            and max(self.filed, default=0) <= self.step,
            "the window has more rows than steps": len(self.filed) <= self.passed,
            "the unfinished step names unknown series": set(self.tail_lanes) <= set(scalars)
            and set(self.tail_counts) == set(self.tail_moments) <= set(histograms),
            "the unfinished step has other lanes": all(len(lanes) == LANES for lanes in self.tail_lanes.values())
            and all(len(moments) == MOMENTS for moments in self.tail_moments.values())
            and all(0 <= column < HEADER + CELLS for counts in self.tail_counts.values() for column in counts),
        }
        for fault, holds in checks.items():
            if not holds:
                raise ValueError(fault)
        return self


def save(buffers: Buffers, tail: Tail | None, kept: list[int], backend: dict[str, Any]) -> dict[str, Any]:
    """Return a snapshot of a tracker: tensors, and the structured part as JSON text.

    The keys and shapes depend on the configuration alone, so that the state of a fresh tracker is a template that
    ``torch.distributed.checkpoint`` can load into.

    Args:
        buffers: The device state; it is copied.
        tail: What was written for the current step already, if anything.
        kept: Windows that the backend has not accepted yet, which are in the backlog.
        backend: State of the backend's tracker, of plain JSON values.
    """
    buffers.finish()
    table = _Table(
        resolution=buffers.resolution,
        scalars=[(s.name, dict(s.context), s.reduce) for s in buffers.scalar_series.series],
        histograms=[(s.name, dict(s.context), s.binning) for s in buffers.histogram_series.series],
        step=buffers.step,
        first=buffers.first,
        filed=buffers.filed,
        passed=buffers.passed,
        windows=buffers.windows,
    )
    if tail is not None:
        table.tail_step = tail.step
        table.tail_lanes = {slot: lanes.tolist() for slot, lanes in tail.lanes.items()}
        table.tail_counts = {
            slot: {int(column): int(counts[column]) for column in np.flatnonzero(counts)}
            for slot, counts in tail.counts.items()
        }
        table.tail_moments = {slot: moments.tolist() for slot, moments in tail.moments.items()}
    return {
        "version": VERSION,
        "backend": json.dumps(backend),
        "kept": json.dumps(kept),
        # Python's JSON, unlike pydantic's, writes the infinities of empty states so that they can be read back.
        "table": json.dumps(table.model_dump(mode="python")),
        "current": buffers.scalars.current.clone(),
        "window": buffers.scalars.window.clone(),
        "counts": buffers.histograms.counts.clone(),
        "moments": buffers.histograms.moments.clone(),
    }


class LoadedState:
    """A state that was read and found to fit, so that applying it cannot fail halfway.

    Args:
        state: What ``save`` returned, perhaps in another process, on another device, for another configuration.
        buffers: The buffers it is meant for; they are not touched.

    Attributes:
        backend: State of the backend's tracker.
        kept: Windows that the backend had not accepted, which the backlog held.

    Raises:
        ValueError: If the state is foreign, of another version, damaged, or does not fit into the buffers.
    """

    def __init__(self, state: Any, buffers: Buffers):
        if not isinstance(state, Mapping):
            raise ValueError(f"the state of a d9d_tracker is a dict, not {type(state).__name__}")
        missing = [key for key in ("version", "backend", "kept", "table", *_DTYPES) if key not in state]
        if missing:
            raise ValueError(f"this is not the state of a d9d_tracker: it has no {', '.join(missing)}")
        if state["version"] != VERSION:
            raise ValueError(
                f"the state has version {state['version']!r} and this d9d_tracker reads version {VERSION}; load it "
                "with the d9d_tracker that wrote it, or a newer one"
            )
        try:
            self.backend = _Backend.model_validate(json.loads(state["backend"])).model_dump()
            self.kept = TypeAdapter(list[int]).validate_python(json.loads(state["kept"]))
            self._table = _Table.model_validate(json.loads(state["table"]))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the state of the tracker is damaged: {error}") from error
        self._scalars = [ScalarSeries(n, tuple(sorted(c.items())), r) for n, c, r in self._table.scalars]
        self._histograms = [HistogramSeries(n, tuple(sorted(c.items())), b) for n, c, b in self._table.histograms]
        self._tensors = {key: state[key] for key in _DTYPES}
        self._check_tensors()
        self._check_fit(buffers)

    def apply(self, buffers: Buffers) -> Tail | None:
        """Put the state into the buffers; a series that has a slot there keeps it.

        Args:
            buffers: The buffers that the state was checked against.

        Returns:
            What was written for the current step already, if anything.
        """
        buffers.start()
        scalar_slots = [buffers.scalar_series.slot(series) for series in self._scalars]
        histogram_slots = [buffers.histogram_series.slot(series) for series in self._histograms]
        tensors = {key: tensor.to(buffers.device) for key, tensor in self._tensors.items()}
        rows = len(self._table.filed)
        for saved, slot in enumerate(scalar_slots):
            buffers.scalars.current[:, slot] = tensors["current"][:, saved]
            buffers.scalars.window[:rows, :, slot] = tensors["window"][:rows, :, saved]
        for saved, slot in enumerate(histogram_slots):
            buffers.histograms.counts[slot] = tensors["counts"][saved]
            buffers.histograms.moments[slot] = tensors["moments"][saved]
        buffers.step, buffers.first, buffers.filed = self._table.step, self._table.first, list(self._table.filed)
        buffers.passed, buffers.windows = self._table.passed, self._table.windows
        buffers.device_step.fill_(buffers.step)
        return self._tail(scalar_slots, histogram_slots)

    def _tail(self, scalar_slots: list[int], histogram_slots: list[int]) -> Tail | None:
        table = self._table
        if table.tail_step is None:
            return None
        tail = Tail(table.tail_step)
        tail.lanes = {scalar_slots[saved]: np.array(lanes) for saved, lanes in table.tail_lanes.items()}
        tail.moments = {histogram_slots[saved]: np.array(moments) for saved, moments in table.tail_moments.items()}
        for saved, counts in table.tail_counts.items():
            row = tail.counts[histogram_slots[saved]] = np.zeros(HEADER + CELLS, dtype=np.int64)
            row[list(counts)] = list(counts.values())
        return tail

    def _check_tensors(self) -> None:
        scalars, histograms, rows = len(self._scalars), len(self._histograms), len(self._table.filed)
        expected = {  # the smallest shape that holds what the table promises
            "current": (LANES, scalars),
            "window": (rows, LANES, scalars),
            "counts": (histograms, HEADER + CELLS),
            "moments": (histograms, MOMENTS),
        }
        exact = {"current": (0,), "window": (1,), "counts": (1,), "moments": (1,)}
        for key, dtype in _DTYPES.items():
            tensor, shape = self._tensors[key], expected[key]
            fits = (
                isinstance(tensor, torch.Tensor)
                and tensor.dtype == dtype
                and tensor.dim() == len(shape)
                and all(have >= need for have, need in zip(tensor.shape, shape, strict=True))
                and all(tensor.shape[axis] == shape[axis] for axis in exact[key])
            )
            if not fits:
                received = (
                    f"{tensor.dtype} of shape {tuple(tensor.shape)}"
                    if isinstance(tensor, torch.Tensor)
                    else type(tensor).__name__
                )
                raise ValueError(
                    f"the state of the tracker is damaged: {key} is {received}, not {dtype} of shape {shape} or more"
                )

    def _check_fit(self, buffers: Buffers) -> None:
        if self._table.resolution != buffers.resolution:
            raise ValueError(
                f"the state was saved with accumulator.scalar_resolution={self._table.resolution!r}; set it to resume"
            )
        if self._table.passed >= buffers.sync_every:
            raise ValueError(
                f"the state holds {self._table.passed} steps of a window and accumulator.sync_every is now "
                f"{buffers.sync_every}; set it to more than {self._table.passed} to resume"
            )
        _check_series(self._scalars, buffers.scalar_series, "max_scalars")
        _check_series(self._histograms, buffers.histogram_series, "max_histograms")


def _distinct(series: Sequence[tuple[str, dict[str, str], Any]]) -> bool:
    return len({(name, *sorted(context.items())) for name, context, _ in series}) == len(series)


def _check_series(saved: list[Any], registry: Registry[Any], capacity_field: str) -> None:
    known = {(series.name, series.context): series for series in registry.series}
    new = 0
    for series in saved:
        before = known.get((series.name, series.context))
        new += before is None
        if before is not None and before != series:
            raise ValueError(
                f"series {series.name!r} was saved with {series.describe()} and is logged with {before.describe()} here"
            )
    if len(known) + new > registry.capacity:
        raise ValueError(
            f"the state holds {len(saved)} series and accumulator.{capacity_field} is {registry.capacity}; set it to "
            f"{len(known) + new} or more to resume"
        )
