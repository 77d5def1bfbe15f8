"""One open run: what lives from the opening of a run to its end, and dies with it."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from d9d_tracker.base import BaseTracker, BaseTrackerRun, RunConfig
from d9d_tracker.config import AccumulatorConfig
from d9d_tracker.delivery.backlog import Backlog
from d9d_tracker.delivery.delivery import FINAL_ERRORS, OPEN_SECONDS, Delivery
from d9d_tracker.delivery.report import RunReport
from d9d_tracker.ranks.ranks import Ranks
from d9d_tracker.record import Record
from d9d_tracker.writer.predecessor import wait_for_predecessor
from d9d_tracker.writer.process import is_portable, open_in_process

from .buffers import Buffers
from .collector import Collector
from .host_window import Tail
from .nonfinite import Callback, NonFiniteWatch
from .spread import of_spread
from .watch.promises import Promises
from .window_points import points

logger = logging.getLogger("d9d_tracker")

_SETTLE_SECONDS = 1.0


@dataclass
class Beginning:
    """Where a run begins.

    Attributes:
        backlog: Name of its backlogs, unique among all runs.
        rewind_to: Step from which on the backends must hold nothing; None for a new run.
        tail: What was written for the current step already, if anything.
        kept: Windows that the backlogs held when the loaded state was saved, by the backend's name.
    """

    backlog: str
    rewind_to: int | None = None
    tail: Tail | None = None
    kept: dict[str, list[int]] = field(default_factory=dict)


def open_deliveries(
    tracker: BaseTracker[Any], properties: RunConfig, config: AccumulatorConfig, beginning: Beginning
) -> dict[str, Delivery]:
    """Open every backend of a tracker on a thread of its own.

    A backend that is down, or has not opened within half a minute, is tried again while the run goes on.

    Args:
        tracker: The tracker.
        properties: Name, description and hyperparameters of the run.
        config: How long to wait, and where the backlogs lie.
        beginning: Where the run begins.

    Returns:
        The deliveries by the name of their backend.

    Raises:
        Exception: What a backend raised that trying again does not mend: a wrong configuration, or another writer.
    """
    deliveries: dict[str, Delivery] = {}
    try:
        for name, backend in tracker.backends().items():
            deliveries[name] = _deliver(name, backend, properties, config, beginning)
        deadline = time.monotonic() + OPEN_SECONDS
        for delivery in deliveries.values():
            try:
                delivery.opened.result(max(0.0, deadline - time.monotonic()))
            except FutureTimeoutError:
                logger.error(
                    "%s has not opened the run for %g s: training goes on, what is logged is kept for it",
                    delivery.name,
                    OPEN_SECONDS,
                )
            except FINAL_ERRORS:
                raise
            except Exception:
                pass  # it is down, and the delivery has said so
    except BaseException as error:
        for delivery in deliveries.values():
            delivery.begin_close(error)
        for delivery in deliveries.values():
            delivery.close(0, error)
        raise
    return deliveries


def _deliver(
    name: str,
    backend: BaseTracker[Any],
    properties: RunConfig,
    config: AccumulatorConfig,
    beginning: Beginning,
) -> Delivery:
    file = f"{beginning.backlog}-{name}" if name else beginning.backlog
    backlog = Backlog(config.backlog_dir, file, config.backlog_bytes, _description(backend, properties))
    if beginning.kept.get(name) and not backlog.path.exists():
        logger.error(
            "run %r: %d windows were not with the backend when the state was saved, and their backlog %s is not "
            "here; they are missing unless a later process has delivered them",
            backend.run_id,
            len(beginning.kept[name]),
            backlog.path,
        )

    elsewhere = config.writer == "process" and is_portable(backend)
    if config.writer == "process" and not elsewhere:
        logger.warning(
            "%s is not made from a configuration that another process could import, or read as JSON (a SecretStr it "
            "could not; have the SDK read it from the environment): it stays on a thread of this one",
            type(backend).__name__,
        )

    @contextmanager
    def open_backend() -> Iterator[BaseTrackerRun]:
        if not elsewhere and beginning.rewind_to is not None:
            wait_for_predecessor(file)  # the last life may have had a writer in a process of its own
        with open_in_process(backend, properties, file) if elsewhere else backend.open(properties) as run:
            backlog.describe(state=backend.state_dict())
            yield run

    try:
        return Delivery(
            name or type(backend).__name__,
            open_backend,
            backlog,
            config.flush_timeout,
            rewind_to=beginning.rewind_to,
            amends=backend.amends,
        )
    except BaseException:
        backlog.close()
        raise


def _description(backend: BaseTracker[Any], properties: RunConfig) -> dict[str, Any]:
    """Return what ``python -m d9d_tracker deliver`` needs to open the backend again."""
    config = backend.config
    return {
        "config": None if config is None else json.loads(config.model_dump_json(exclude={"accumulator"})),
        "state": backend.state_dict(),
        "name": properties.name,
        "description": properties.description,
        "hparams": properties.hparams,
    }


class Session:
    """One open run: its deliveries, its ranks and its collector.

    Args:
        deliveries: The deliveries by the name of their backend; none on a rank that does not write.
        buffers: The device state.
        config: How long to wait.
        tail: What an earlier life of the run wrote for its last, unfinished step.
        ranks: The ranks that share the run; None if there are no others.
        rank: This process among them.
        on_nonfinite: Gets the series that are not finite any more.

    Attributes:
        report: What became of the records.
        promises: What watches have promised.
        process: The process that opened it: a forked child has none of its threads.
    """

    def __init__(
        self,
        deliveries: Mapping[str, Delivery],
        buffers: Buffers,
        config: AccumulatorConfig,
        tail: Tail | None,
        ranks: Ranks | None,
        rank: int,
        on_nonfinite: Callback | None = None,
    ):
        self.rank = rank
        self.process = os.getpid()
        self.report = RunReport({name: delivery.report for name, delivery in deliveries.items()})
        self._deliveries = dict(deliveries)
        self._buffers = buffers
        self._timeout = config.flush_timeout
        if tail is not None and deliveries:
            written = of_spread(tail.as_window(buffers.take_index()), False)
            for delivery in deliveries.values():
                delivery.put(written.index, points(written), tail.step, unfinished=tail.step)
        if ranks is not None:
            self.report.missing = ranks.missing
        self.promises = Promises()
        self._nonfinite = NonFiniteWatch(rank, ranks is not None, self.report, on_nonfinite)
        self._collector = Collector(
            list(deliveries.values()), buffers, tail, ranks, rank, self.report, self.promises, self._nonfinite
        )

    @property
    def tail(self) -> Tail | None:
        """What was written for the last, unfinished step; steady after ``settle``."""
        return self._collector.tail

    @property
    def has_merged(self) -> bool:
        """Whether some point of a scalar series is made of several values."""
        return self._collector.has_merged

    @property
    def latest(self) -> Sequence[Record]:
        """The points of the last window, where this process writes; steady after ``close``."""
        return self._collector.latest

    def send(self) -> None:
        """Take over the windows that were swapped. Never waits."""
        self._collector.put()

    def flush(self) -> None:
        """Send the window as far as it got, and wait for the backends, ``flush_timeout`` seconds at most."""
        deadline = time.monotonic() + self._timeout
        self._buffers.close_window()
        self._collector.drain(self._timeout)
        for delivery in self._deliveries.values():
            delivery.flush(max(0.0, deadline - time.monotonic()))

    def call(self, name: str | None, action: Callable[[BaseTrackerRun], object]) -> dict[str, Future[object]]:
        """Have backends' threads do something with the backends' runs; see ``Delivery.call``.

        Args:
            name: The backend; all if None.
            action: Gets the backend's run.
        """
        chosen = self._deliveries if name is None else {name: self._deliveries[name]}
        return {name: delivery.call(action) for name, delivery in chosen.items()}

    def settle(self) -> bool:
        """Wait until all that has left the device is safe: with the backends, or in their backlogs.

        A backend that is slow is waited for about a second; then what is queued for it is put on disk.

        Returns:
            Whether everything has left the device in time.
        """
        drained = self._collector.drain(self._timeout)
        deadline = time.monotonic() + min(_SETTLE_SECONDS, self._timeout)
        for delivery in self._deliveries.values():
            delivery.settle(max(0.0, deadline - time.monotonic()))
        return drained

    def kept(self) -> dict[str, list[int]]:
        """Return the windows that are in the backlogs, by the name of the backend."""
        return {name: kept for name, delivery in self._deliveries.items() if (kept := delivery.kept())}

    def drain(self, failed: bool) -> bool:
        """Wait until all that was swapped has become records, ``flush_timeout`` seconds at most.

        Args:
            failed: Whether the run ended by an error: then other ranks, which may wait for this one, are not waited
                for.
        """
        return self._collector.drain(min(_SETTLE_SECONDS, self._timeout) if failed else self._timeout)

    def close(self, deadline: float, error: BaseException | None = None) -> None:
        """Send what is left; deliver it and close the backends, each within ``flush_timeout`` seconds.

        Args:
            deadline: When to give up what has not left the device, in seconds of ``time.monotonic``.
            error: What ended the run, if it failed.
        """
        try:
            self._buffers.close_window(is_last=True)
            self._collector.put()
            self._count_what_had_no_slot()
        finally:
            self._collector.close(max(0.1, deadline - time.monotonic()), isinstance(error, Exception))
            self._close_deliveries(self._timeout, error)
            self._nonfinite.close(min(_SETTLE_SECONDS, self._timeout))

    def _count_what_had_no_slot(self) -> None:
        dropped = self._buffers.scalar_series.dropped + self._buffers.histogram_series.dropped
        self.report.without_slot = dropped
        if dropped:
            logger.error("%d values had no slot left and are lost; see above for the first", dropped)

    def abandon(self) -> None:
        """Leave at once, after a second interruption: what is in memory is put on disk."""
        self._close_deliveries(0, None)

    def _close_deliveries(self, timeout: float, error: BaseException | None) -> None:
        for delivery in self._deliveries.values():
            delivery.begin_close(error)
        deadline = time.monotonic() + timeout
        for delivery in self._deliveries.values():
            if not delivery.close(max(0.0, deadline - time.monotonic()), error):
                logger.error("%s hangs; it is left to close in the background", delivery.name)
