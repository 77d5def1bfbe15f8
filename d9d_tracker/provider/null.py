"""Backend that drops everything: tracking switched off by configuration."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import override

from d9d_tracker.backend import RecordRun, RecordTracker
from d9d_tracker.bare_run import BareRun
from d9d_tracker.base import RunConfig
from d9d_tracker.config import TrackerConfig
from d9d_tracker.points import Points
from d9d_tracker.record import Record

if TYPE_CHECKING:
    import torch


class NullTrackerConfig(TrackerConfig):
    """Configuration of the backend that drops everything.

    Attributes:
        provider: Discriminator, always ``"null"``.
    """

    provider: Literal["null"] = "null"


class NullSink(RecordRun):
    """Drops what it is handed."""

    @override
    def write_record(self, record: Record) -> None:
        pass

    @override
    def write_columns(self, points: Points) -> None:
        pass

    @override
    def add_hparams(self, hparams: Mapping[str, Any]) -> None:
        pass


class NullRun(BareRun):
    """A run that checks names and steps and drops the values unread, so that none is waited for."""

    @override
    def scalar(self, name: str, value: "float | torch.Tensor", context: dict[str, str] | None = None) -> None:
        self._check_open(name)

    @override
    def bins(self, name: str, values: "torch.Tensor", context: dict[str, str] | None = None) -> None:
        self._check_open(name)


class NullTracker(RecordTracker[NullTrackerConfig]):
    """Opens runs that drop everything."""

    bare_run = NullRun

    @override
    def open_run(self, properties: RunConfig, run_id: str | None) -> NullSink:
        return NullSink(run_id or "null")
