"""d9d: its training loop logs to any backend of this library, through its own tracker interface.

    with plug_in(JsonlTrackerConfig(path="runs")):
        trainer = TrainingConfigurator(...).configure()
    # ... where the job's configuration says {"logger": {"tracker": {"provider": "null"}, ...}}

This is the way for d9d 0.24 and newer. Up to d9d 0.23, whose interface this library began with, a tracker of this
library runs in d9d's loop as it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Self

import torch

from d9d_tracker.accumulator import AccumulatingRun
from d9d_tracker.base import BaseTrackerRun, RunConfig
from d9d_tracker.config import IntegerBinning
from d9d_tracker.record import Histogram, Record

from .framework_run import FrameworkRun
from .lazy_run import AnyTracker


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
        self._tracked.set_step(point.step)
        if hasattr(value, "counts"):
            self._write_counts(point, value.counts)
        elif hasattr(value, "value"):
            self._tracked.log({point.name: value.value}, point.step, dict(point.context))
        else:
            raise ValueError(f"{point.name!r} got {type(value).__name__}: d9d writes a Scalar or a Histogram")

    def _write_counts(self, point: Any, counts: torch.Tensor) -> None:
        run, counts = self.run, counts.to(torch.int64)
        if isinstance(run, AccumulatingRun) and point.step == self._tracked.step:
            run.counts(point.name, counts, dict(point.context))
            return
        values = torch.arange(len(counts)).repeat_interleave(counts)
        histogram = Histogram.from_values(values, IntegerBinning(bins=len(counts)))
        record = Record(point.name, point.step, dict(point.context), histogram)
        if isinstance(run, AccumulatingRun):
            run.buffers.add_late([record], {})
        else:
            run.write([record])


class D9dLoopTracker:
    """Has the methods of d9d's ``BaseTracker``, and is a ``Stateful``: a job that is restored goes on with its run.

    d9d opens a run on its main process only, so that a configuration's ranks are not waited for.

    Args:
        tracker: A tracker that one process uses, or the configuration of one.
    """

    def __init__(self, tracker: AnyTracker):
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
        return self._tracked.tracker.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the run of a state.

        Args:
            state_dict: What ``state_dict`` returned.
        """
        self._tracked.tracker.load_state_dict(state_dict)


class PlugIn:
    """What ``plug_in`` returns: to undo it, or to leave it at the end of a ``with`` block.

    Args:
        tracker: The tracker, or the configuration of one.
    """

    def __init__(self, tracker: AnyTracker):
        self._job_logger: Any = import_module("d9d.loop.component.job_logger").JobLogger
        build = self._before = self._job_logger._build_tracker

        def build_tracker(job_logger: Any) -> Any:
            self.undo()
            return D9dLoopTracker(tracker) if job_logger._dist_context.is_main_process else build(job_logger)

        self._plugged = self._job_logger._build_tracker = build_tracker

    def undo(self) -> None:
        """Leave d9d as it was, if no job was built meanwhile."""
        if self._job_logger._build_tracker is self._plugged:
            self._job_logger._build_tracker = self._before

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()


def plug_in(tracker: AnyTracker) -> PlugIn:
    """Have the next job that this process builds log to a backend of this library.

    d9d makes its tracker from a closed union of configurations, so its ``JobLogger`` is told here: on the main process
    the job gets this tracker whatever its configuration says, which may as well be ``{"provider": "null"}``. Once a job
    was built, or the ``with`` block is left, d9d is as it was.

    Args:
        tracker: A tracker that one process uses, or the configuration of one.
    """
    return PlugIn(tracker)
