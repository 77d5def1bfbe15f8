"""What a job has left in its backlogs and will not come back for: listed, and delivered."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from d9d_tracker.backend import open_sink
from d9d_tracker.base import BaseTracker, RunConfig
from d9d_tracker.delivery.backlog import Backlog
from d9d_tracker.delivery.delivery import Delivery
from d9d_tracker.factory import AnyTrackerConfig, tracker_from_config
from d9d_tracker.sink import Sink

_UNBOUNDED = 2**62


def deliver(folder: Path, timeout: float, only_list: bool, console: Console) -> bool:
    """Deliver every backlog in a folder to its run, each within seconds; return whether nothing is left.

    A backlog of a job that is still running is left alone. Interrupted and run again, it goes on where it stopped.
    """
    paths = sorted(folder.expanduser().glob("*.sqlite3"))
    table = Table("backlog", "run", "records", "steps", "outcome")
    left = 0
    for path in paths:
        backlog = Backlog(path.parent, unquote(path.stem), _UNBOUNDED)
        try:
            contents, description = backlog.contents(), backlog.description
        except (RuntimeError, sqlite3.Error) as error:
            left += 1
            table.add_row(path.name, "", "", "", str(error))
            continue
        records = sum(window.records for window in contents.values())
        first = next(iter(contents.values())).first if contents else 0
        last = max((window.last for window in contents.values()), default=0)
        outcome = "waits" if only_list else _deliver_one(backlog, description, range(max(1, first), last + 1), timeout)
        backlog.close()
        left += outcome != _DELIVERED
        table.add_row(path.name, str(description.get("name", "?")), str(records), f"{first} to {last}", outcome)
    if paths:
        console.print(table)
    else:
        console.print(f"no backlog in {folder}: everything was delivered, or it lies elsewhere (--backlog DIR)")
    return left == 0


_DELIVERED = "delivered"


def _deliver_one(backlog: Backlog, description: dict[str, Any], steps: range, timeout: float) -> str:
    config = description.get("config")
    if config is None:
        return "its backend was not made from a configuration, so only the job itself can deliver it: resume that job"
    try:
        data = {**config, "accumulator": None}
        tracker: BaseTracker[Any] = tracker_from_config(TypeAdapter[Any](AnyTrackerConfig).validate_python(data))
        tracker.load_state_dict(description["state"])
        properties = RunConfig(**{key: description[key] for key in RunConfig.model_fields if key in description})

        @contextmanager
        def open_run() -> Iterator[Sink]:
            with open_sink(tracker, properties) as sink:
                if sink.step in steps:  # what a kill left both here and there; later steps are those of a later life
                    sink.rewind(steps.start)
                yield sink

        delivery = Delivery(description["name"], open_run, backlog, timeout)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    delivery.flush(timeout)
    delivery.close(timeout)
    if dropped := delivery.report.dropped:
        return f"{dropped} records were damaged, and are in files beside it"
    if not delivery.report.undelivered:
        return _DELIVERED
    cause = "" if delivery.cause is None else f": {type(delivery.cause).__name__}: {delivery.cause}"
    return f"{delivery.report.undelivered} records still wait{cause}"
