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
from .host_window import Tail
from .registry import HistogramSeries, Reduction, Registry, ScalarSeries
from .scalars import LANES

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


class _TailScalar(BaseModel):
    """What was written for the unfinished step of a scalar series."""

    model_config = ConfigDict(extra="forbid")

    series: tuple[str, dict[str, str], Reduction]
    lanes: Annotated[list[float], Field(min_length=LANES, max_length=LANES)]


class _TailHistogram(BaseModel):
    """What was written for the unfinished step of a histogram series: the counts that are not zero, and the moments."""

    model_config = ConfigDict(extra="forbid")

    series: tuple[str, dict[str, str], Annotated[Binning, Field(discriminator="kind")]]
    counts: dict[Annotated[int, Field(ge=0, lt=HEADER + CELLS)], int]
    moments: Annotated[list[float], Field(min_length=MOMENTS, max_length=MOMENTS)]


class Table(BaseModel):
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
    tail_scalars: list[_TailScalar] = []
    tail_histograms: list[_TailHistogram] = []

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        checks = {
            "two series have the same name and context": _distinct(self.scalars) and _distinct(self.histograms),
            "a series has no name": all(name for name, *_ in (*self.scalars, *self.histograms)),
            "the steps of the window do not rise": self.filed == sorted(set(self.filed)),
            "the window is ahead of the step": self.first <= min([*self.filed, self.step])
            and max(self.filed, default=0) <= self.step,
            "the window has more rows than steps": len(self.filed) <= self.passed,
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
    table = Table(
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
        table.tail_scalars = [
            _TailScalar(series=(series.name, dict(series.context), series.reduce), lanes=lanes.tolist())
            for series, lanes in tail.lanes.items()
        ]
        table.tail_histograms = [
            _TailHistogram(
                series=(series.name, dict(series.context), series.binning),
                counts={int(column): int(counts[column]) for column in np.flatnonzero(counts)},
                moments=tail.moments[series].tolist(),
            )
            for series, counts in tail.counts.items()
        ]
    rows, scalars = len(buffers.filed), len(buffers.scalar_series.series)
    window = torch.zeros_like(buffers.scalars.window)  # the other rows are of an earlier window
    window[:rows, :, :scalars] = buffers.scalars.window[:rows, :, :scalars]
    return {
        "version": VERSION,
        "backend": json.dumps(backend),
        "kept": json.dumps(kept),
        # Python's JSON, unlike pydantic's, writes the infinities of empty states so that they can be read back.
        "table": json.dumps(table.model_dump(mode="python")),
        "current": buffers.scalars.current.clone(),
        "window": window,
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
            self._table = Table.model_validate(json.loads(state["table"]))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the state of the tracker is damaged: {error}") from error
        self._scalars = [scalar_series(*series) for series in self._table.scalars]
        self._histograms = [histogram_series(*series) for series in self._table.histograms]
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
        buffers.scalars.clear_rows(rows)  # a series that the state does not know has nothing in them
        for saved, slot in enumerate(scalar_slots):
            buffers.scalars.current[:, slot] = tensors["current"][:, saved]
            buffers.scalars.window[:rows, :, slot] = tensors["window"][:rows, :, saved]
        for saved, slot in enumerate(histogram_slots):
            buffers.histograms.counts[slot] = tensors["counts"][saved]
            buffers.histograms.moments[slot] = tensors["moments"][saved]
        buffers.step, buffers.first, buffers.filed = self._table.step, self._table.first, list(self._table.filed)
        buffers.passed, buffers.windows = self._table.passed, self._table.windows
        buffers.device_step.fill_(buffers.step)
        return self._tail()

    def _tail(self) -> Tail | None:
        table = self._table
        if table.tail_step is None:
            return None
        tail = Tail(table.tail_step)
        for scalar in table.tail_scalars:
            tail.lanes[scalar_series(*scalar.series)] = np.array(scalar.lanes)
        for histogram in table.tail_histograms:
            series = histogram_series(*histogram.series)
            tail.moments[series] = np.array(histogram.moments)
            row = tail.counts[series] = np.zeros(HEADER + CELLS, dtype=np.int64)
            row[list(histogram.counts)] = list(histogram.counts.values())
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


def scalar_series(name: str, context: dict[str, str], reduce: Reduction) -> ScalarSeries:
    """Return a scalar series as a state names it."""
    return ScalarSeries(name, tuple(sorted(context.items())), reduce)


def histogram_series(name: str, context: dict[str, str], binning: Binning) -> HistogramSeries:
    """Return a histogram series as a state names it."""
    return HistogramSeries(name, tuple(sorted(context.items())), binning)


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
