"""The tracker a user gets: a backend's tracker behind device-side accumulation. It keeps configuration and state."""

import functools
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from rich import get_console
from rich.console import Console
from typing_extensions import override

from d9d_tracker import at_exit
from d9d_tracker.bank.buffers import Buffers
from d9d_tracker.base import BaseTracker, RunConfig, check_properties
from d9d_tracker.config import AccumulatorConfig, TrackerConfig
from d9d_tracker.delivery.delivery import Delivery, close_all
from d9d_tracker.delivery.report import RunReport
from d9d_tracker.errors import TrackerValueError
from d9d_tracker.log import logger
from d9d_tracker.pipeline import checkpoint, job_state
from d9d_tracker.pipeline.assembly import Assembly, State
from d9d_tracker.pipeline.checkpoint import BackendState, Snapshot
from d9d_tracker.pipeline.nonfinite import Callback, NonFiniteWatch
from d9d_tracker.pipeline.pipeline import Pipeline
from d9d_tracker.pipeline.summary import print_summary, words_of_end
from d9d_tracker.ranks.job import Job, is_silenced, warn_of_a_job_unknown
from d9d_tracker.ranks.ranks import Ranks
from d9d_tracker.record import Record
from d9d_tracker.windows.in_transit import InTransit
from d9d_tracker.windows.late import Late

from .opening import open_deliveries
from .run import AccumulatingRun


class AccumulatingTracker(BaseTracker[TrackerConfig]):
    """Wraps a backend's tracker: same interface, but values accumulate on the device and travel once per window.

    Args:
        tracker: The backend's tracker.
        config: How to accumulate.
        group: Returns the gloo process group of the ranks that share a run; by default, as ``config.distributed`` says.
        on_nonfinite: Gets each series that is not finite any more, once, within a window. It runs on a thread of its
            own, and may take its time.

    Attributes:
        report: What became of the records of the current or the last run.
    """

    def __init__(
        self,
        tracker: BaseTracker[Any],
        config: AccumulatorConfig,
        group: Callable[[], Any] | None = None,
        on_nonfinite: Callback | None = None,
    ):
        self.report = RunReport()
        self.config = tracker.config
        self._tracker = tracker
        self._config = config
        self._group = group
        self._on_nonfinite = on_nonfinite
        self._name = ""
        self._latest: Sequence[Record] = ()
        self._job: Job | None = None
        self._pipeline: Pipeline | None = None
        self._backlog: str | None = None  # of the current run, or of the one that a loaded state goes on with
        self._loaded: Snapshot | None = None  # until the run that it goes on with has begun
        self._left: Snapshot | None = None  # as the last run was left

    @classmethod
    @override
    def from_config(cls, config: TrackerConfig) -> Self:
        raise TypeError("a tracker with an accumulator is made by tracker_from_config, around that of its backend")

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
        return self._run.buffers.clock.copies

    @override
    def open(self, properties: RunConfig) -> "OpenRun":
        """Open a run, or go on with the one that a loaded state belongs to, for a ``with`` block.

        In a torch.distributed job every rank opens it, leaves it and flushes it; rank 0 alone opens the backend. What
        fails on one rank is raised on all. A backend that is down, or has not opened within half a minute,
        does not stop the run: what is logged is kept on disk until it is back.

        On leaving, also by an exception or when the interpreter exits, the partial window is sent and delivered within
        ``flush_timeout`` seconds; what a backend has not accepted by then is kept on disk. Closing the backend may take
        as long again; after that it is left to its thread in the background. Its failures are logged, never raised.

        Args:
            properties: Name, description and hyperparameters of the run.

        Returns:
            A context manager that yields the open run.

        Raises:
            TrackerTypeError: If the properties are no ``RunConfig``.
            TrackerValueError: If a run of this tracker is open already; if the ranks of a job differ in what they must
                agree on, are not all here in time, or rank 0 could not open the backend. On entering.
            RuntimeError: If another job writes to this run. On entering.
        """
        check_properties(properties)
        return OpenRun(self, properties)

    def begin(self, properties: RunConfig) -> AccumulatingRun:
        """Open a run; see ``open``, which calls this, as ``start`` does.

        Args:
            properties: Name, description and hyperparameters of the run.
        """
        if self._pipeline is not None and self._pipeline.process == os.getpid():
            raise TrackerValueError(
                f"open({properties.name!r}): a run of this tracker is open; leave its `with` block, or call "
                "run.finish(), first"
            )
        run, job = self._run, self._find_job()
        if job is None:
            warn_of_a_job_unknown(self._config)
        if self._loaded is None:
            run.buffers.start()
            for backend in self._tracker.backends().values():
                backend.run_id, backend.new_id = None, backend.make_id(properties)
            self._backlog = f"{type(self._tracker).__name__}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(8)}"
        try:
            self._pipeline = self._open_pipeline(properties, job)
        except BaseException:
            if self._loaded is not None:  # what went wrong may be mended, and the state opened again
                self._tracker.load_state_dict(self._loaded.backend.state)
            raise
        self.run_id, self.resume_id = self._tracker.run_id or self._backlog, None
        self.report = self._pipeline.report
        self._loaded = self._left = None
        self._name = properties.name
        run.attach(self._pipeline, self.end, 1 if job is None else job.size)
        at_exit.add(self, self.end)
        return run

    def end(self, error: BaseException | None = None) -> None:
        """Close the open run; see ``open``. Does nothing if none is open.

        Args:
            error: What ended the run, if it failed.
        """
        pipeline, run = self._pipeline, self._run
        if pipeline is None:
            return
        at_exit.remove(self)
        error = error or at_exit.uncaught()
        if pipeline.process != os.getpid():  # a forked child has none of the threads to wait for
            self._pipeline = None
            return
        deadline = time.monotonic() + self._config.flush_timeout
        try:
            run.stop_taking()
            run.end_watches()
            snapshot = self._snapshot_to_leave(pipeline, isinstance(error, Exception))
            pipeline.close(deadline, error)
            run.warn_of_no_steps(pipeline.assembly.has_merged)
            self._latest = pipeline.latest
            self._tell_the_end(pipeline.assembly.rank, error)
            if snapshot is not None:
                snapshot.backend.kept.update(pipeline.kept(before=snapshot.first))
                self._left = snapshot
        except BaseException:  # a second interruption: keep what is in memory, and leave
            pipeline.abandon()
            raise
        finally:
            self.run_id = self._tracker.run_id or self._backlog
            run.detach()
            self._pipeline = None

    def _tell_the_end(self, rank: int, error: BaseException | None) -> None:
        try:
            if isinstance(error, Exception):
                logger.error("%s", words_of_end(error, self._name, self._run.buffers.clock.step, self._latest))
            if self._config.summary and rank == 0 and get_console().is_terminal:
                self.print_summary()
        except (Exception, SystemExit) as failure:  # an error without words; a broken pipe, for which rich exits
            logger.error("the end of the run could not be told: %r", failure)

    def print_summary(self, console: Console | None = None) -> None:
        """Print what became of the last run, where it is and how to open it, as its end does on a terminal.

        Args:
            console: Where to print; rich's own by default.
        """
        openers = {name: backend.how_to_open() for name, backend in self._tracker.backends().items()}
        shown = {name: opener for name, opener in openers.items() if opener is not None}
        print_summary(console or get_console(), self._name, shown, self.report, self._latest, self.copies)

    @override
    def how_to_open(self) -> str | None:
        return self._tracker.how_to_open()

    def resume_last(self) -> None:
        """Have the next ``open`` go on with the run that has just ended: a test after the training, for example.

        Raises:
            TrackerValueError: If a run is open.
        """
        self.load_state_dict(self.state_dict())

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return everything a later process needs to go on as if it had never stopped.

        Take it between steps, together with the state of the training. Waits ``flush_timeout`` seconds at most for
        windows on their way from the device, three for other ranks, and about a second for the backend, after which
        what it has not accepted is kept on disk; does not end the current window. After a run closed, it is the state
        in which the run was left: who resumes from it goes on with the window that leaving sent early.

        In a job of several ranks the state holds what this rank has to save. ``torch.distributed.checkpoint`` keeps the
        states of all ranks. It may be called on some ranks only; it does not communicate.

        Returns:
            Plain values, as large as what is in use; loads with ``torch.load(..., weights_only=True)``.

        Raises:
            TrackerValueError: If the run was opened by the parent of this forked process.
            RuntimeError: If the device does not answer.
        """
        if is_silenced(self._config):  # and has none, which must not stand for that of rank 0
            return {"world_size": 1, "ranks": {}}
        state = checkpoint.save(self._snapshot())
        if self._config.distributed == "rank0":
            return job_state.wrap(state, 0, 1)
        job = self._find_job() if self._left is None else self._job  # which may have ended since
        return state if job is None else job_state.wrap(state, job.rank, job.size)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state, before ``open``, which then goes on with that run.

        Args:
            state_dict: What ``state_dict`` returned, on any device. A checkpoint that another number of ranks saved is
                loaded with ``d9d_tracker.distributed.load`` instead.

        Raises:
            TrackerValueError: If a run is open.
            ValueError: If the state is foreign, of another version, damaged, or does not fit; nothing has changed then.
        """
        if self._pipeline is not None:
            raise TrackerValueError("load_state_dict: a run of this tracker is open; load before `open`")
        if is_silenced(self._config):
            return
        buffers = self._run.buffers
        snapshot = job_state.read_own(state_dict, self.rank, self.world_size)
        backend = snapshot.backend
        if backend.type != type(self._tracker).__name__:
            raise ValueError(
                f"the state belongs to a {backend.type} and this is a {type(self._tracker).__name__}; resume with the "
                "provider that the run was started with"
            )
        checkpoint.check_fit(snapshot, buffers)
        self._tracker.load_state_dict(backend.state)
        checkpoint.apply(snapshot, buffers)
        self._backlog = backend.backlog
        self.run_id = self.resume_id = self._tracker.run_id or self._backlog
        # One that was taken before any run was opened has nothing to go on with.
        self._loaded, self._left = None if self._backlog is None else snapshot, None

    @functools.cached_property
    def _run(self) -> AccumulatingRun:
        return AccumulatingRun(Buffers(self._config), self._config)

    def _shared_settings(self) -> dict[str, Any]:
        """Return what all ranks of a job must have alike."""
        return {
            "accumulator.sync_every": self._config.sync_every,
            "accumulator.scalar_resolution": self._config.scalar_resolution,
            "the run of the loaded state": None if self._loaded is None else self._backlog,
        }

    def _open_pipeline(self, properties: RunConfig, job: Job | None) -> Pipeline:
        run = self._backlog
        assert run is not None  # `begin` has set it, or `load_state_dict`
        if is_silenced(self._config):
            return self._make_pipeline({}, None, 1, InTransit())
        deliveries: dict[str, Delivery] = {}
        in_transit = InTransit() if self._loaded is None else self._loaded.left.in_transit

        def open_here() -> dict[str, Any]:
            deliveries.update(open_deliveries(self._tracker, properties, self._config, run, self._loaded))
            reached = {"taken": list(in_transit.taken.items()), "unwritten": in_transit.unwritten}
            return {"run_id": self._tracker.run_id, "backlog": run, **reached}

        try:
            if job is None:
                open_here()
                return self._make_pipeline(deliveries, None, 0, in_transit)
            opened = job.open(self._shared_settings(), open_here)
            if job.rank > 0:
                self._tracker.run_id, self._tracker.resume_id = opened["run_id"], None
                self._backlog = opened["backlog"]
            ranks = job.connect()
            try:
                in_transit = replace(in_transit, taken=dict(opened["taken"]), unwritten=opened["unwritten"])
                return self._make_pipeline(deliveries, ranks, job.rank, in_transit)
            except BaseException:
                ranks.close()
                raise
        except BaseException as error:
            close_all(deliveries.values(), 0, error)
            raise

    def _make_pipeline(
        self, deliveries: dict[str, Delivery], ranks: Ranks | None, rank: int, in_transit: InTransit
    ) -> Pipeline:
        report = RunReport({name: delivery.report for name, delivery in deliveries.items()})
        nonfinite = NonFiniteWatch(rank, ranks is not None, report, self._on_nonfinite)
        left, has_one_row = State(), self._run.buffers.resolution == "window"
        if self._loaded is not None:
            left = self._loaded.left
            left = replace(left, late=Late(), in_transit=in_transit)
        assembly = Assembly(rank, ranks, nonfinite, report, left, has_one_row)
        return Pipeline(self._run.buffers, deliveries, assembly, self._config.flush_timeout)

    def _snapshot(self) -> Snapshot:
        pipeline = self._pipeline
        if pipeline is None:
            return self._left or self._loaded or self._make_snapshot(None, {})
        if pipeline.process != os.getpid():
            raise TrackerValueError(
                "state_dict: the run was opened by the parent of this forked process, which has no part in it; take "
                "the state there"
            )
        pipeline.settle()
        return self._make_snapshot(pipeline, pipeline.kept())

    def _snapshot_to_leave(self, pipeline: Pipeline, failed: bool) -> Snapshot | None:
        if not pipeline.drain_for_state(failed):
            return None
        try:
            return self._make_snapshot(pipeline, {})
        except Exception as error:
            logger.error("the state cannot be taken as the run is left: %r", error)
            return None

    def _make_snapshot(self, pipeline: Pipeline | None, kept: dict[str, list[int]]) -> Snapshot:
        buffers = self._run.buffers
        clock, window, late = buffers.snapshot(self._config.flush_timeout)
        there = State() if pipeline is None else pipeline.state()
        late.records = [*there.late.records, *late.records]
        backend = BackendState(type(self._tracker).__name__, self._tracker.state_dict(), self._backlog, dict(kept))
        left = replace(there, late=late)
        return Snapshot(buffers.resolution, clock.first, clock.passed, clock.windows, window, backend, left)

    def _find_job(self) -> Job | None:
        if self._pipeline is None and (self._job is None or self._job.is_stale):
            self._job = Job.of(self._config, self._group)
        return self._job


class OpenRun:
    """What ``AccumulatingTracker.open`` returns: opens the run on entering and closes it on leaving.

    Unlike a generator's, its run stays open when it is forgotten: until then, or until the interpreter exits.

    Args:
        tracker: The tracker.
        properties: Name, description and hyperparameters of the run.
    """

    def __init__(self, tracker: AccumulatingTracker, properties: RunConfig):
        self._tracker = tracker
        self._properties = properties

    def __enter__(self) -> AccumulatingRun:
        return self._tracker.begin(self._properties)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._tracker.end(error)
