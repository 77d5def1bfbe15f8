"""How a run is opened with each of its backends, on a thread or in a process of its own."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from d9d_tracker.backend import open_sink
from d9d_tracker.base import BaseTracker, RunConfig
from d9d_tracker.config import AccumulatorConfig
from d9d_tracker.delivery.backlog import Backlog
from d9d_tracker.delivery.delivery import OPEN_SECONDS, Delivery, close_all
from d9d_tracker.hparams import plain_hparams
from d9d_tracker.log import logger
from d9d_tracker.pipeline.checkpoint import Snapshot
from d9d_tracker.sink import Sink
from d9d_tracker.writer.portable import is_portable
from d9d_tracker.writer.predecessor import wait_for_predecessor
from d9d_tracker.writer.process import ProcessSink


def open_deliveries(
    tracker: BaseTracker[Any], properties: RunConfig, config: AccumulatorConfig, run: str, loaded: Snapshot | None
) -> dict[str, Delivery]:
    """Open every backend of a tracker on a thread of its own; return the deliveries by the name of their backend.

    A backend that is down, or has not opened within half a minute, is tried again while the run goes on; what trying
    again does not mend is raised. ``run`` is what the run's backlogs are called, unique among all runs.
    """
    deliveries: dict[str, Delivery] = {}
    try:
        for name, backend in tracker.backends().items():
            deliveries[name] = _deliver(name, backend, properties, config, run, loaded)
        deadline = time.monotonic() + OPEN_SECONDS
        for delivery in deliveries.values():
            delivery.wait_until_open(max(0.0, deadline - time.monotonic()))
    except BaseException as error:
        close_all(deliveries.values(), 0, error)
        raise
    return deliveries


def _deliver(
    name: str,
    backend: BaseTracker[Any],
    properties: RunConfig,
    config: AccumulatorConfig,
    run: str,
    loaded: Snapshot | None,
) -> Delivery:
    file, kind = f"{run}-{name}" if name else run, type(backend).__name__
    backlog = Backlog(config.backlog_dir, file, config.backlog_bytes, _description(backend, properties))
    kept = [] if loaded is None else loaded.backend.kept.get(name, [])
    if kept and not backlog.path.exists():
        words = (
            "run %r: %d windows were not with the backend when the state was saved, and their backlog %s is not "
            "here; they are missing unless a later process has delivered them"
        )
        logger.error(words, backend.run_id, len(kept), backlog.path)
    elsewhere = (config.writer == "process" or (config.writer == "auto" and backend.is_heavy)) and is_portable(backend)
    if config.writer == "process" and not elsewhere:
        logger.warning(
            "%s is not made from a configuration that another process could import, or read as JSON (a SecretStr it "
            "could not; have the SDK read it from the environment): it stays on a thread of this one",
            kind,
        )
    if loaded is not None and backend.resume_id is None and backend.new_id is None:
        logger.warning(
            "%s had not opened its run when the state was saved, and names its runs itself: what the state holds goes "
            "to a new one",
            kind,
        )
    was_open = False

    def come_here(why: str) -> None:
        nonlocal elsewhere
        elsewhere = False
        words = (
            "run.backend: %s. Until then %s, which was in a process of its own, goes on on a thread of this one, where "
            "it takes time from the training"
        )
        logger.warning(words, why, kind)

    @contextmanager
    def open_backend() -> Iterator[Sink]:
        nonlocal was_open
        if was_open:  # its sink was lost: go on with the same run
            backend.load_state_dict(backend.state_dict())
        if not elsewhere and loaded is not None:
            wait_for_predecessor(file)  # the last life may have had a writer in a process of its own
        inside = ProcessSink(backend, properties, file, come_here) if elsewhere else None
        with inside or open_sink(backend, properties) as sink:
            was_open = True
            backlog.describe(state=backend.state_dict())
            yield sink

    rewind_to, patience = None if loaded is None else loaded.rewind_to, config.flush_timeout
    try:
        return Delivery(name or kind, open_backend, backlog, patience, rewind_to=rewind_to, amends=backend.amends)
    except BaseException:
        backlog.close()
        raise


def _description(backend: BaseTracker[Any], properties: RunConfig) -> dict[str, Any]:
    """Return what ``python -m d9d_tracker deliver`` needs to open the backend again."""
    config = backend.config
    return {
        "config": None if config is None else config.model_dump(mode="json", exclude={"accumulator"}),
        "state": backend.state_dict(),
        **properties.model_dump(exclude={"hparams"}),
        "hparams": plain_hparams(properties.hparams),
    }
