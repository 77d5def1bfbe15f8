"""The tracker a user gets: a backend's tracker behind device-side accumulation."""

import copy
import json
import logging
import os
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
from .distributed.elsewhere import DeliveryElsewhere
from .distributed.job import Job, warn_of_a_job_unknown
from .distributed.node import Node
from .distributed.state import own_state, wrap
from .fanout import AnyDelivery, Fanout, HasParts
from .finish import records
from .host_window import Tail
from .run import AccumulatingRun
from .state import LoadedState, save

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
        self._delivery: AnyDelivery | None = None
        self._job: Job | None = None

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
    def rank(self) -> int:
        """This process among those that share the run; 0, the one that writes, if there are no others."""
        job = self._find_job()
        return 0 if job is None else job.rank

    @property
    def world_size(self) -> int:
        """How many processes share the run."""
        job = self._find_job()
        return 1 if job is None else job.size

    @property
    def copies(self) -> int:
        """How many copies to the host the current or the last run took."""
        return 0 if self._buffers is None else self._buffers.copies

    @contextmanager
    def open(self, properties: RunConfig) -> Iterator[AccumulatingRun]:
        """Open a run, or go on with the one that a loaded state belongs to.

        In a torch.distributed job every rank opens it, leaves it and flushes it; rank 0 alone opens the backend. What
        fails on one rank is raised on all.

        On leaving, also by an exception, the partial window is sent and delivered within ``flush_timeout`` seconds;
        what the backend has not accepted by then is kept on disk. Closing the backend may take as long again; after
        that it is left to a thread in the background. Its failures are logged, never raised here.

        Args:
            properties: Name, description and hyperparameters of the run.

        Yields:
            The open run.

        Raises:
            TrackerValueError: If a run of this tracker is open already; if the ranks of a job differ in what they must
                agree on, are not all here in time, or rank 0 could not open the backend.
            RuntimeError: If another job writes to this run.
        """
        if self._collector is not None:
            raise TrackerValueError(f"open({properties.name!r}): a run of this tracker is open; leave it first")
        buffers, run = self._allocate()
        job = self._find_job()
        if job is None:
            warn_of_a_job_unknown(self._config)
        else:
            job.agree(
                {
                    "accumulator.sync_every": self._config.sync_every,
                    "accumulator.scalar_resolution": self._config.scalar_resolution,
                    "the run of the loaded state": None if self._resume is None else self.run_id,
                }
            )
        if self._resume is None:
            buffers.start()
            self._tail = None
        context = self._tracker.open(properties) if job is None else job.open(self._tracker, properties)
        process = os.getpid()
        try:
            backend = context.__enter__()
            try:
                self._connect_and_begin(job, backend, buffers, run)
                yield run
            finally:
                if os.getpid() == process:  # a forked child has none of the threads to wait for
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

        In a job of several ranks the state holds what this rank has to save. ``torch.distributed.checkpoint`` keeps the
        states of all ranks. It may be called on some ranks only; it does not communicate.

        Returns:
            Tensors on the device of the buffers and plain values; loads with ``torch.load(..., weights_only=True)``.
        """
        state = self._own_state()
        job = self._find_job()
        return state if job is None else wrap(state, job.rank, job.size)

    def _own_state(self) -> dict[str, Any]:
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
            state_dict: What ``state_dict`` returned, on any device. A checkpoint that another number of ranks saved is
                loaded with ``d9d_tracker.distributed.load`` instead.

        Raises:
            TrackerValueError: If a run is open.
            ValueError: If the state is foreign, of another version, damaged, or does not fit; nothing has changed then.
        """
        if self._collector is not None:
            raise TrackerValueError("load_state_dict: a run of this tracker is open; load before `open`")
        buffers, _ = self._allocate()
        loaded = LoadedState(own_state(state_dict, self.rank, self.world_size), buffers)
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

    def _find_job(self) -> Job | None:
        if self._collector is None and (self._job is None or self._job.is_stale):
            self._job = Job.of(self._config)
        return self._job

    def _connect_and_begin(
        self, job: Job | None, backend: BaseTrackerRun | None, buffers: Buffers, run: AccumulatingRun
    ) -> None:
        node = None if job is None else job.connect()

        def begin() -> None:
            if backend is not None:
                self._begin(backend, buffers, run, node)

        try:
            if job is None:
                begin()
            else:
                job.on_all_ranks(begin)
        except BaseException:
            if node is not None and self._collector is None:
                node.close()
            raise
        if node is not None and backend is None:
            self._begin_elsewhere(buffers, run, node)

    def _begin_elsewhere(self, buffers: Buffers, run: AccumulatingRun, node: Node) -> None:
        """Begin a run on a rank that does not write."""
        self.run_id = self._tracker.run_id
        self._delivery = DeliveryElsewhere()
        self.report = self._delivery.report
        self._collector = Collector(self._delivery, buffers.outbox, None, node)
        self._resume = self.resume_id = self._left = None
        self._kept = []
        run.attach(self._collector, self._delivery, self.rank)

    def _begin(self, backend: BaseTrackerRun, buffers: Buffers, run: AccumulatingRun, node: Node | None) -> None:
        self.run_id = self._tracker.run_id
        name = f"{type(self._tracker).__name__}-{self.run_id}"
        if isinstance(backend, HasParts):
            parts: dict[str, Delivery] = {}
            try:
                for part, part_run in backend.parts().items():
                    parts[part] = self._deliver(part_run, f"{name}-{part}", buffers)
            except BaseException:
                for started in parts.values():
                    started.close(0)
                raise
            self._delivery = Fanout(parts)
        else:
            self._delivery = self._deliver(backend, name, buffers)
        self.report = self._delivery.report
        if self._tail is not None:
            written = records(self._tail.as_window(buffers.next_window()))
            if written:
                self._delivery.put(buffers.windows - 1, written, self._tail.step)
        self._collector = Collector(self._delivery, buffers.outbox, self._tail, node)
        self._resume = self.resume_id = self._left = None
        self._kept = []
        run.attach(self._collector, self._delivery, self.rank)

    def _deliver(self, backend: BaseTrackerRun, name: str, buffers: Buffers) -> Delivery:
        """Start the delivery to a backend, which first takes back what the loaded state does not hold."""
        backlog = Backlog(self._config.backlog_dir, name, self._config.backlog_bytes)
        try:
            if self._resume is not None:
                self._take_back(backend, backlog, buffers.first)
            return Delivery(backend, backlog, self._config.flush_timeout)
        except BaseException:
            backlog.close()
            raise

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

    def _end(self, run: AccumulatingRun) -> AnyDelivery | None:
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
        self,
        context: AbstractContextManager[BaseTrackerRun | None],
        name: str,
        hanging: AnyDelivery | None,
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
