"""Backend that hands everything to a tracker of d9d."""

import secrets
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, Self

import numpy as np
import torch
from pydantic import TypeAdapter
from typing_extensions import override

from d9d_tracker.backend import RecordRun, RecordTracker
from d9d_tracker.base import RunConfig
from d9d_tracker.record import Histogram, Record

from . import D9dConfig

_MOST_BINS = 2048
d9d: Any = import_module("d9d.tracker")  # by name, because type checkers run where it is not installed


class D9dRun(RecordRun):
    """A run of d9d, whose histograms are counts over the bins 0 to 1, 1 to 2 and so on, as the integer binning gives.

    Every histogram is written as quantiles, moments and counts, too, because d9d's trackers may leave histograms out
    without a word. d9d's runs have no flush: what they keep back is theirs to lose.

    Attributes:
        sdk: The run of d9d.
    """

    def __init__(self, run_id: str, context: AbstractContextManager[Any]):
        super().__init__(run_id)
        self._d9d_context = context
        self.sdk = context.__enter__()

    @override
    def write_record(self, record: Record) -> None:
        if not isinstance(record.value, Histogram):
            self._send(record, record.name, d9d.Scalar(value=record.value))
            return
        counts = _unit_counts(record.value)
        if counts is not None:
            self._send(record, record.name, d9d.Histogram(counts=counts))
        for kind, number in record.value.summary().items():
            self._send(record, f"{record.name}/{kind}", d9d.Scalar(value=number))

    def _send(self, record: Record, name: str, value: Any) -> None:
        self.sdk.write(d9d.TrackerPoint(name=name, step=record.step, context=dict(record.context)), value)

    @override
    def release(self) -> None:
        error = self._error
        self._d9d_context.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)


class D9dTracker(RecordTracker[D9dConfig]):
    """Opens runs of a tracker of d9d, and re-attaches to them as that tracker does."""

    def __init__(self, tracker: Any):
        super().__init__(D9dConfig(tracker={}))
        self._tracker = tracker

    @classmethod
    def from_config(cls, config: D9dConfig) -> Self:
        """Create d9d's tracker from its configuration, and this one around it."""
        inner = TypeAdapter[Any](d9d.AnyTrackerConfig).validate_python(config.tracker)
        return cls(d9d.tracker_from_config(inner))

    def state_dict(self) -> dict[str, Any]:
        """Return what a later process needs to re-attach to the run: d9d's state, and an identity of our own."""
        return {**super().state_dict(), "d9d": self._tracker.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, before ``open``."""
        if "d9d" not in state_dict:
            raise ValueError("the state of a D9dTracker has a 'run_id' and a 'd9d'; this one is another's")
        super().load_state_dict(state_dict)
        self._tracker.load_state_dict(state_dict["d9d"])

    @override
    def open_run(self, properties: RunConfig, run_id: str | None) -> D9dRun:
        context = self._tracker.open(d9d.RunConfig(**properties.model_dump(exclude={"started", "ended"})))
        return D9dRun(run_id or secrets.token_hex(8), context)


def _unit_counts(histogram: Histogram) -> torch.Tensor | None:
    """Return the counts of the bins 0 to 1, 1 to 2 and so on, if those are the histogram's."""
    edges = histogram.edges
    if not histogram.count or edges[0] < 0 or edges[0] % 1 or np.any(np.diff(edges) != 1) or edges[-1] > _MOST_BINS:
        return None
    return torch.from_numpy(np.concatenate((np.zeros(int(edges[0]), dtype=np.int64), histogram.counts)))
