"""d9d: its training loop logs to any backend of this library, through its own tracker interface.

    plug_in(JsonlTrackerConfig(path="runs"))
    # ... and in the job's configuration: {"logger": {"tracker": {"provider": "null"}, ...}}

This is the way for d9d 0.24 and newer. Up to d9d 0.23, whose interface this library began with, a tracker of this
library runs in d9d's loop as it is.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch

from d9d_tracker.accumulator import AccumulatingRun
from d9d_tracker.base import BaseTracker, BaseTrackerRun, RunConfig
from d9d_tracker.config import IntegerBinning, TrackerConfig
from d9d_tracker.record import Histogram

from .framework_run import FrameworkRun


class D9dLoopRun:
    """What d9d's loop writes to.

    Args:
        tracked: The run behind it.
    """

    def __init__(self, tracked: FrameworkRun):
        self._tracked = tracked

    @property
    def run(self) -> BaseTrackerRun:
        """The open run: for modules that log from the device."""
        return self._tracked.run

    def write(self, point: Any, value: Any) -> None:
        """Write a value at its own step, which may be some steps behind.

        Args:
            point: d9d's ``TrackerPoint``.
            value: d9d's ``Scalar`` or ``Histogram``, on the host.

        Raises:
            ValueError: If it is neither.
        """
        if hasattr(value, "counts"):
            self._tracked.set_step(point.step)
            self._write_counts(point.name, value.counts, dict(point.context))
        elif hasattr(value, "value"):
            self._tracked.log({point.name: value.value}, point.step, dict(point.context))
        else:
            raise ValueError(f"{point.name!r} got {type(value).__name__}: d9d writes a Scalar or a Histogram")

    def _write_counts(self, name: str, counts: torch.Tensor, context: dict[str, str]) -> None:
        run = self.run
        if isinstance(run, AccumulatingRun):
            run.counts(name, counts.to(torch.int64), context)
        else:
            indices = torch.arange(len(counts)).repeat_interleave(counts.to(torch.int64))
            run.histogram(name, Histogram.from_values(indices, IntegerBinning(bins=len(counts))), context)


class D9dLoopTracker:
    """Has the methods of d9d's ``BaseTracker``, and is a ``Stateful``: a job that is restored goes on with its run.

    d9d opens a run on its main process only, so that a configuration's ranks are not waited for.

    Args:
        tracker: A tracker that one process uses, or the configuration of one.
    """

    def __init__(self, tracker: BaseTracker[Any] | TrackerConfig):
        self._tracked = FrameworkRun(tracker, is_alone=True)

    @contextmanager
    def open(self, properties: Any) -> Iterator[D9dLoopRun]:
        """Open a run.

        Args:
            properties: d9d's ``RunConfig``.

        Yields:
            What d9d's loop writes to.
        """
        self._tracked = FrameworkRun(self._tracked.tracker, RunConfig(**properties.model_dump()))
        try:
            yield D9dLoopRun(self._tracked)
        except BaseException as error:
            self._tracked.finish(error)
            raise
        else:
            self._tracked.finish()

    def state_dict(self) -> dict[str, Any]:
        """Return the tracker's state."""
        return self._tracked.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the run of a state.

        Args:
            state_dict: What ``state_dict`` returned.
        """
        self._tracked.load_state_dict(state_dict)


def plug_in(tracker: BaseTracker[Any] | TrackerConfig) -> None:
    """Have every job that this process builds from now on log to a backend of this library.

    d9d makes its tracker from a closed union of configurations, so its ``JobLogger`` is told here: on the main process
    it gets this tracker whatever the job's configuration says, which may as well be ``{"provider": "null"}``.

    Args:
        tracker: A tracker that one process uses, or the configuration of one.
    """
    job_logger: Any = import_module("d9d.loop.component.job_logger").JobLogger
    build = getattr(job_logger._build_tracker, "__wrapped__", job_logger._build_tracker)

    @functools.wraps(build)
    def build_tracker(self: Any) -> Any:
        return D9dLoopTracker(tracker) if self._dist_context.is_main_process else build(self)

    job_logger._build_tracker = build_tracker
