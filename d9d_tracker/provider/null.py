"""Backend that drops everything: tracking switched off by configuration."""

import collections
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import override

from d9d_tracker.backend import RecordRun, RecordTracker
from d9d_tracker.base import RunConfig
from d9d_tracker.config import TrackerConfig
from d9d_tracker.points import Points
from d9d_tracker.record import Histogram, Record

if TYPE_CHECKING:
    import torch


class NullTrackerConfig(TrackerConfig):
    """Configuration of the backend that drops everything.

    Attributes:
        provider: Discriminator, always ``"null"``.
    """

    provider: Literal["null"] = "null"


class NullRun(RecordRun):
    """A run that checks names and steps and drops the values unread, so that none is waited for."""

    def scalar(self, name: str, value: "float | torch.Tensor", context: dict[str, str] | None = None) -> None:
        """Drop a number."""
        self._check_open(name)

    def bins(self, name: str, values: "torch.Tensor", context: dict[str, str] | None = None) -> None:
        """Drop a population."""
        self._check_open(name)

    def histogram(self, name: str, histogram: Histogram, context: dict[str, str] | None = None) -> None:
        """Drop a histogram."""
        self._check_open(name)

    def write(self, records: Iterable[Record]) -> None:
        """Drop finished points."""
        collections.deque(records, maxlen=0)

    def write_points(self, points: Points) -> None:
        """Drop the points of a window."""

    @override
    def add_hparams(self, hparams: Mapping[str, Any]) -> None:
        pass

    @override
    def write_record(self, record: Record) -> None:
        pass


class NullTracker(RecordTracker[NullTrackerConfig]):
    """Opens runs that drop everything."""

    @override
    def open_run(self, properties: RunConfig, run_id: str | None) -> NullRun:
        return NullRun(run_id or "null")
