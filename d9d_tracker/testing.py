"""For tests of code that logs: a backend that remembers what it was handed, and `check_step`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Self
from uuid import uuid4

import torch
from typing_extensions import override

from .base import BaseTracker, BaseTrackerRun, RunConfig
from .check_step import StepReport, check_step
from .config import TrackerConfig
from .record import Histogram, Record

__all__ = ["RecordingConfig", "RecordingRun", "RecordingTracker", "StepReport", "check_step"]


class RecordingConfig(TrackerConfig):
    """Configuration of the recording backend.

    Attributes:
        provider: Discriminator, always ``"recording"``.
    """

    provider: Literal["recording"] = "recording"


class RecordingRun(BaseTrackerRun):
    """Keeps every record in memory.

    Attributes:
        properties: What the run was opened with.
        records: What was logged, in the order of the calls.
        flushes: How often ``flush`` was called.
    """

    def __init__(self, properties: RunConfig):
        self.properties = properties
        self.records: list[Record] = []
        self.flushes = 0
        self._step = 0
        self._context: dict[str, str] = {}

    @override
    def set_step(self, step: int) -> None:
        self._step = step

    @override
    def set_context(self, context: dict[str, str]) -> None:
        self._context = dict(context)

    @override
    def scalar(self, name: str, value: float | torch.Tensor, context: dict[str, str] | None = None) -> None:
        self.records.append(Record(name, self._step, {**self._context, **(context or {})}, float(value)))

    @override
    def bins(self, name: str, values: torch.Tensor, context: dict[str, str] | None = None) -> None:
        self.histogram(name, Histogram.from_values(values), context)

    @override
    def histogram(self, name: str, histogram: Histogram, context: dict[str, str] | None = None) -> None:
        self.records.append(Record(name, self._step, {**self._context, **(context or {})}, histogram))

    @override
    def add_hparams(self, hparams: Mapping[str, Any]) -> None:
        self.properties = self.properties.model_copy(update={"hparams": {**self.properties.hparams, **hparams}})

    @override
    def flush(self) -> None:
        self.flushes += 1

    @override
    def rewind(self, step: int) -> None:
        self.records[:] = [record for record in self.records if record.step < step]

    def points(self, name: str, **context: str) -> dict[int, float]:
        """Return the scalar points of one series by step; a later point of the same step replaces the former.

        Args:
            name: Name of the series.
            **context: Its tags, all of them.
        """
        return {one.step: one.value for one in self._of(name, context) if isinstance(one.value, float)}

    def histograms(self, name: str, **context: str) -> dict[int, Histogram]:
        """Return the histograms of one series by step; a later one of the same step replaces the former.

        Args:
            name: Name of the series.
            **context: Its tags, all of them.
        """
        return {one.step: one.value for one in self._of(name, context) if isinstance(one.value, Histogram)}

    def _of(self, name: str, context: dict[str, str]) -> Iterator[Record]:
        return (one for one in self.records if one.name == name and one.context == context)


class RecordingTracker(BaseTracker[RecordingConfig]):
    """Creates recording runs, and keeps them after they closed.

    Attributes:
        runs: Every run, by its id.
    """

    def __init__(self) -> None:
        self.runs: dict[str, RecordingRun] = {}

    @classmethod
    @override
    def from_config(cls, config: RecordingConfig) -> Self:
        return cls()

    @contextmanager
    @override
    def open(self, properties: RunConfig) -> Iterator[RecordingRun]:
        self.run_id, self.resume_id = self.resume_id or uuid4().hex, None
        yield self.runs.setdefault(self.run_id, RecordingRun(properties))

    @property
    def run(self) -> RecordingRun:
        """The current or the last run."""
        assert self.run_id is not None, "no run was opened yet"
        return self.runs[self.run_id]
