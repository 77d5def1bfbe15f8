"""The tracker a user gets: a backend's tracker behind device-side accumulation."""

import copy
import json
import logging
import sys
import threading
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
        self._resume: dict[str, Any] | None = None  # the backend's part of a loaded state, until it is opened
        self._left: dict[str, Any] | None = None  # the state in which the last run was left
        self._kept: list[int] = []  # windows that were in the backlog when the last state was taken
        self._collector: Collector | None = None
        self._delivery: Delivery | None = None

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
        what the backend has not accepted by then is kept on disk. Closing the backend may take as long again; after
        that it is left to a thread in the background. Its failures are logged, never raised here.

        Args:
            properties: Name, description and hyperparameters of the run.

        Yields:
            The open run.

        Raises:
            TrackerValueError: If a run of this tracker is open already.
            RuntimeError: If another job writes to this run.
        """
        if self._collector is not None:
            raise TrackerValueError(f"open({properties.name!r}): a run of this tracker is open; leave it first")
        buffers, run = self._allocate()
        if self._resume is None:
            buffers.start()
            self._tail = None
        context = self._tracker.open(properties)
        try:
            backend = context.__enter__()
            try:
                collector, delivery = self._begin(backend, buffers)
                run.attach(collector, delivery)
                yield run
            finally:
                hanging = self._delivery
                try:
                    hanging = self._end(run)
                finally:
                    self._close_backend(context, properties.name, hanging)
        except BaseException:
            if self._resume is not None:  # not begun: what went wrong may be mended, and the state opened again
                self._tracker.load_state_dict(self._resume["state"])
            raise

    def state_dict(self) -> dict[str, Any]:
        """Return everything a later process needs to go on as if it had never stopped.

        Take it between steps, together with the state of the training. Waits at most as long as a flush would for
        windows on their way; does not end the current window. After a run closed, it is the state in which the run was
        left: who resumes from it goes on with the window that leaving sent early.

        Returns:
            Tensors on the device of the buffers and plain values; loads with ``torch.load(..., weights_only=True)``.
        """
        buffers, _ = self._allocate()
        if self._left is not None:
            return copy.deepcopy(self._left)
        if self._collector is not None and self._delivery is not None:
            self._collector.drain()
            self._kept = self._delivery.settle(self._config.flush_timeout)
            self._tail = self._collector.tail
        return self._save(buffers)

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
        self._tail, self._kept, self._left = loaded.apply(buffers), loaded.kept, None
        self.run_id = self.resume_id = self._tracker.run_id
        # A state taken before any run was opened has nothing to go on with.
        self._resume = None if self.run_id is None else loaded.backend

    def _allocate(self) -> tuple[Buffers, AccumulatingRun]:
        if self._buffers is None or self._run is None:
            self._buffers = Buffers(self._config)
            self._run = AccumulatingRun(self._buffers, self._config)
        return self._buffers, self._run

    def _save(self, buffers: Buffers) -> dict[str, Any]:
        backend = {"type": type(self._tracker).__name__, "state": self._tracker.state_dict()}
        return save(buffers, self._tail, self._kept, backend)

    def _begin(self, backend: BaseTrackerRun, buffers: Buffers) -> tuple[Collector, Delivery]:
        self.run_id = self._tracker.run_id
        name = f"{type(self._tracker).__name__}-{self.run_id}"
        backlog = Backlog(self._config.backlog_dir, name, self._config.backlog_bytes)
        try:
            if self._resume is not None:
                self._take_back(backend, backlog, buffers.first)
            self._delivery = Delivery(backend, backlog, self._config.flush_timeout)
        except BaseException:
            backlog.close()
            raise
        self.report = self._delivery.report
        if self._tail is not None:
            series = buffers.scalar_series.series, buffers.histogram_series.series
            written = records(self._tail.as_window(buffers.next_window(), *series))
            if written:
                self._delivery.put(buffers.windows - 1, written, self._tail.step)
        self._collector = Collector(self._delivery, buffers.outbox, self._tail)
        self._resume = self.resume_id = self._left = None
        self._kept = []
        return self._collector, self._delivery

    def _take_back(self, backend: BaseTrackerRun, backlog: Backlog, first: int) -> None:
        """Have backend and backlog hold what the loaded state does not: everything before ``first``, and only that."""
        backlog.forget_from(first)
        kept = backlog.contents()
        if not backlog.path.exists() and self._kept:
            logger.error(
                "run %r: %d windows were not with the backend when the state was saved, and their backlog %s is not "
                "here; they are missing unless a later process has delivered them",
                self.run_id,
                len(self._kept),
                backlog.path,
            )
        # A kill may have come between the delivery of a kept window and its removal from the backlog.
        backend.rewind(next(iter(kept.values())).first if kept else first)

    def _end(self, run: AccumulatingRun) -> Delivery | None:
        """Send and deliver what is left; return the delivery if the backend does not let go of its thread."""
        collector, delivery = self._collector, self._delivery
        if delivery is None:
            return None
        try:
            if collector is None:  # not begun
                return None if delivery.close(0) else delivery
            buffers, _ = self._allocate()
            collector.drain()
            self._tail, windows = collector.tail, buffers.windows
            try:
                self._left = self._save(buffers)
            except Exception as error:
                logger.error("the state cannot be taken as the run is left: %r", error)
            ended = run.detach()
            self._kept = [window for window in delivery.kept() if window < windows]
            if self._left is not None:
                self._left["kept"] = json.dumps(self._kept)
            else:
                self._tail = collector.tail
            return None if ended else delivery
        except BaseException:  # a second interruption: keep what is in memory, and leave
            delivery.close(0)
            raise
        finally:
            self._collector = self._delivery = None

    def _close_backend(
        self, context: AbstractContextManager[BaseTrackerRun], name: str, hanging: Delivery | None
    ) -> None:
        raised = sys.exc_info()

        def close() -> None:
            if hanging is not None:
                hanging.join()
            try:
                context.__exit__(*raised)
            except BaseException as error:
                if error is not raised[1]:
                    logger.error("the backend failed to close: %r", error)

        closer = threading.Thread(target=close, name="d9d_tracker closer", daemon=True)
        closer.start()
        if hanging is None:
            closer.join(self._config.flush_timeout)
        if closer.is_alive():
            logger.error("run %r: the backend hangs; it is left to close in the background", name)
