"""The tracker a user gets: a backend's tracker behind device-side accumulation."""

import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self

from d9d_tracker.base import BaseTracker, BaseTrackerRun, RunConfig
from d9d_tracker.config import AccumulatorConfig, TrackerConfig
from d9d_tracker.errors import TrackerValueError

from .backlog import Backlog
from .buffers import Buffers
from .collector import Collector
from .delivery import Delivery, DeliveryReport
from .finish import records
from .run import AccumulatingRun
from .state import LoadedState, save
from .window import Tail

logger = logging.getLogger("d9d_tracker")


class AccumulatingTracker(BaseTracker[TrackerConfig]):
    """Wraps a backend's tracker: same interface, but values accumulate on the device and travel once per window.

    Args:
        tracker: The backend's tracker.
        config: How to accumulate.

    Attributes:
        report: What became of the records of the current or the last run.
    """

    def __init__(self, tracker: BaseTracker[Any], config: AccumulatorConfig):
        self.report = DeliveryReport()
        self._tracker = tracker
        self._config = config
        self._buffers: Buffers | None = None
        self._run: AccumulatingRun | None = None
        self._tail: Tail | None = None
        self._loaded = False
        self._collector: Collector | None = None

    @classmethod
    def from_config(cls, config: TrackerConfig) -> Self:
        """Create the tracker its configuration describes, with accumulation as configured or by default.

        Args:
            config: The configuration of a backend.
        """
        from d9d_tracker.factory import tracker_from_config  # the factory imports this module

        backend = tracker_from_config(config.model_copy(update={"accumulator": None}))
        return cls(backend, config.accumulator or AccumulatorConfig())

    @property
    def copies(self) -> int:
        """How many copies to the host the current or the last run took."""
        return 0 if self._buffers is None else self._buffers.copies

    @contextmanager
    def open(self, properties: RunConfig) -> Iterator[AccumulatingRun]:
        """Open a run, or go on with the one that a loaded state belongs to.

        On leaving, also by an exception, the partial window is sent and delivered within ``flush_timeout`` seconds;
        what the backend has not accepted by then is kept on disk. Its failures are logged, never raised here.

        Args:
            properties: Name, description and hyperparameters of the run.

        Yields:
            The open run.

        Raises:
            TrackerValueError: If a run of this tracker is open already.
        """
        if self._collector is not None:
            raise TrackerValueError(f"open({properties.name!r}): a run of this tracker is open; leave it first")
        buffers, run = self._allocate()
        if not self._loaded:
            buffers.start()
            self._tail = None
        context = self._tracker.open(properties)
        backend = context.__enter__()
        stuck = False
        try:
            self.run_id = self._tracker.run_id
            delivery = self._start_delivery(backend, buffers)
            self._collector = Collector(delivery, self._tail)
            self._loaded = False
            run.attach(self._collector, delivery)
            try:
                yield run
            finally:
                stuck = not run.detach()
                self._tail, self._collector = self._collector.tail, None
        finally:
            if stuck:
                # Closing a backend that hangs would hang as well.
                self._abandoned = context
                logger.error("the backend hangs; run %r is left without closing it", properties.name)
            else:
                _close(context)

    def state_dict(self) -> dict[str, Any]:
        """Return everything a later process needs to go on as if it had never stopped.

        Waits at most as long as a flush would for windows on their way; does not end the current window.

        Returns:
            Tensors on the device of the buffers and plain values; loads with ``torch.load(..., weights_only=True)``.
        """
        buffers, run = self._allocate()
        if self._collector is not None:
            run.settle()
            self._tail = self._collector.tail
        backend = {"type": type(self._tracker).__name__, "state": self._tracker.state_dict()}
        return save(buffers, self._tail, backend)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state, before ``open``, which then goes on with that run.

        Args:
            state_dict: What ``state_dict`` returned, on any device.

        Raises:
            TrackerValueError: If a run is open.
            ValueError: If the state is foreign, of another version, damaged, or does not fit; nothing has changed then.
        """
        if self._collector is not None:
            raise TrackerValueError("load_state_dict: a run of this tracker is open; load before `open`")
        buffers, _ = self._allocate()
        loaded = LoadedState(state_dict, buffers)
        if loaded.backend["type"] != type(self._tracker).__name__:
            raise ValueError(
                f"the state belongs to a {loaded.backend['type']} and this is a {type(self._tracker).__name__}; resume "
                "with the provider that the run was started with"
            )
        self._tracker.load_state_dict(loaded.backend["state"])
        self.run_id = self._tracker.run_id
        self._tail = loaded.apply(buffers)
        # A state taken before any run was opened has nothing to go on with.
        self._loaded = self.run_id is not None

    def _allocate(self) -> tuple[Buffers, AccumulatingRun]:
        if self._buffers is None or self._run is None:
            self._buffers = Buffers(self._config)
            self._run = AccumulatingRun(self._buffers, self._config)
        return self._buffers, self._run

    def _start_delivery(self, backend: BaseTrackerRun, buffers: Buffers) -> Delivery:
        name = f"{type(self._tracker).__name__}-{self.run_id}"
        backlog = Backlog(self._config.backlog_dir, name, self._config.backlog_bytes)
        if self._loaded:
            first = buffers.filed[0] if buffers.filed else buffers.step
            backlog.forget_from(first)
            kept = next(backlog.windows(), None)
            backend.rewind(first if kept is None else kept[1][0].step)
        delivery = Delivery(backend, backlog)
        self.report = delivery.report
        if self._loaded and self._tail is not None:
            window = self._tail.as_window(
                buffers.next_window(), buffers.scalar_series.series, buffers.histogram_series.series
            )
            delivery.put(window.index, records(window))
        return delivery


def _close(context: AbstractContextManager[BaseTrackerRun]) -> None:
    raised = sys.exc_info()
    try:
        context.__exit__(*raised)
    except Exception as error:
        if error is not raised[1]:
            logger.error("the backend failed to close: %r", error)
