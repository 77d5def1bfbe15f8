"""d9d: its training loop logs to any backend of this library, through its own tracker interface.

    with plug_in(JsonlTrackerConfig(path="runs")):
        trainer = TrainingConfigurator(...).configure()
    # ... where the job's configuration says {"logger": {"tracker": {"provider": "null"}, ...}}

This is the way for d9d 0.24 and newer. Up to d9d 0.23, whose interface this library began with, a tracker of this
library runs in d9d's loop as it is.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

import numpy as np

from d9d_tracker.base import RunConfig
from d9d_tracker.record import Histogram

from .framework_run import AnyRun, AnyTracker, FrameworkRun


class D9dLoopRun:
    """What d9d's loop writes to.

    Args:
        tracked: The run behind it.
    """

    def __init__(self, tracked: FrameworkRun):
        self._tracked = tracked

    @property
    def run(self) -> AnyRun:
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
            with self._tracked.without_context() as run:
                run.log_at(point.step, {point.name: _histogram(value.counts.numpy())}, dict(point.context))
        elif hasattr(value, "value"):
            self._tracked.log({point.name: value.value}, point.step, dict(point.context))
        else:
            raise ValueError(f"{point.name!r} got {type(value).__name__}: d9d writes a Scalar or a Histogram")


class D9dLoopTracker:
    """Has the methods of d9d's ``BaseTracker``, and is a ``Stateful``: a job that is restored goes on with its run.

    d9d opens a run on its main process only, so that a configuration's ranks are not waited for.

    Args:
        tracker: A tracker that one process uses, or the configuration of one.
        monitor: Whether to call ``run.monitor()``. Its steps are those that d9d writes.
    """

    def __init__(self, tracker: AnyTracker, monitor: bool = False):
        self._tracked = FrameworkRun(tracker, is_alone=True, monitor=monitor)

    @contextmanager
    def open(self, properties: Any) -> Iterator[D9dLoopRun]:
        """Open a run, which d9d's loop writes to.

        Args:
            properties: d9d's ``RunConfig``.
        """
        self._tracked = self._tracked.anew(RunConfig(**properties.model_dump()))
        with ExitStack() as stack:
            stack.push(lambda kind, error, traceback: self._tracked.finish(error))
            yield D9dLoopRun(self._tracked)

    def state_dict(self) -> dict[str, Any]:
        """Return the tracker's state."""
        return self._tracked.tracker.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the run of a state."""
        self._tracked.tracker.load_state_dict(state_dict)


def plug_in(tracker: AnyTracker, monitor: bool = False) -> ExitStack:
    """Have the next job that this process builds log to a backend of this library.

    d9d makes its tracker from a closed union of configurations, so its ``JobLogger`` is told here: on the main process
    the job gets this tracker whatever its configuration says, which may as well be ``{"provider": "null"}``.

    Args:
        tracker: A tracker that one process uses, or the configuration of one.
        monitor: Whether to call ``run.monitor()``. Its steps are those that d9d writes.

    Returns:
        What leaves d9d as it was at the end of a ``with`` block or by ``close()``; once a job was built, it is.
    """
    job_logger: Any = import_module("d9d.loop.component.job_logger").JobLogger
    before, plugged = job_logger._build_tracker, ExitStack()

    def build(job: Any) -> Any:
        plugged.close()
        return D9dLoopTracker(tracker, monitor) if job._dist_context.is_main_process else before(job)

    def undo() -> None:
        if job_logger._build_tracker is build:
            job_logger._build_tracker = before

    job_logger._build_tracker = build
    plugged.callback(undo)
    return plugged


def _histogram(counts: np.ndarray) -> Histogram:
    """Return how often each of the integers from 0 on was counted as a histogram of them."""
    used = np.flatnonzero(counts)
    first, last = (int(used[0]), int(used[-1])) if used.size else (0, -1)
    counts, integers = counts[first : last + 1].astype(np.int64), np.arange(first, last + 2, dtype=np.float64)
    low, high = (first, last) if used.size else (math.nan, math.nan)
    zeros = counts[0] if used.size and first == 0 else 0
    sums = float(counts @ integers[:-1]), float(counts @ integers[:-1] ** 2)
    return Histogram(integers, counts, *sums, low, high, zeros, nan=0, posinf=0, neginf=0)
