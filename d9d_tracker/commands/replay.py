"""Runs in JSON files are sent to another backend: what is stopped and run again goes on, and doubles nothing."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from d9d_tracker.base import BaseTracker, BaseTrackerRun, RunConfig
from d9d_tracker.config import TrackerConfig
from d9d_tracker.factory import AnyTrackerConfig, tracker_from_config
from d9d_tracker.reading import StoredRun, read
from d9d_tracker.record import Record

_FLUSH_EVERY = 20_000  # points


class Position:
    """How far the replay of a run has come, in a file beside that of the run.

    Args:
        run: The run.
        config: Where it is sent: each destination has a position of its own.

    Attributes:
        path: The file.
        state: State of the backend's tracker; None if nothing was sent.
        step: The first step that was not sent, or not all of it.
        points: How many points of earlier steps there were.
    """

    def __init__(self, run: StoredRun, config: TrackerConfig):
        text = config.model_dump_json(exclude={"accumulator"})
        digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        self.path = run.path.with_name(f"{run.path.stem}.{getattr(config, 'provider', 'backend')}-{digest}.replay")
        known = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.state: dict[str, Any] | None = known.get("state")
        self.step: int = known.get("step", 0)
        self.points: int = known.get("points", 0)

    def move(self, state: dict[str, Any], step: int, points: int) -> None:
        """Note, durably, what the backend holds.

        Args:
            state: State of its tracker.
            step: The first step that it does not hold all of.
            points: How many points of earlier steps there are.
        """
        self.state, self.step, self.points = state, step, points
        draft = self.path.with_suffix(".draft")
        with draft.open("w") as file:
            json.dump({"state": state, "step": step, "points": points}, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path)


def config_from(provider: str | None, settings: list[str], file: Path | None) -> TrackerConfig:
    """Make a backend's configuration from the command line.

    Args:
        provider: Name of the backend; None if the file says it.
        settings: Fields as ``NAME=VALUE``; a value that is JSON is read as such.
        file: JSON file of the configuration that the settings amend, if any.

    Raises:
        ValueError: If they do not make a configuration; the message says what is wrong with which field.
    """
    data: dict[str, Any] = json.loads(file.read_text()) if file is not None else {}
    data |= {"provider": provider} if provider is not None else {}
    for setting in settings:
        name, sign, value = setting.partition("=")
        if not sign:
            raise ValueError(f"--set {setting}: write it as NAME=VALUE")
        try:
            data[name] = json.loads(value)
        except ValueError:
            data[name] = value
    try:
        config: TrackerConfig = TypeAdapter[Any](AnyTrackerConfig).validate_python({**data, "accumulator": None})
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'provider'}: {one['msg']}" for one in error.errors())
        raise ValueError(f"no configuration of a backend: {faults}. Give fields by --set NAME=VALUE") from None
    return config


def replay(path: Path, config: TrackerConfig, console: Console) -> None:
    """Send runs to another backend, with their names, hyperparameters, contexts, steps and times.

    Stopped and run again, it goes on with the first step that the backend may lack, and takes back what it has of it.
    So it does with what a job has logged since. If earlier points have changed, as when the job was resumed from a
    checkpoint meanwhile, the run is sent again from its first step.

    Args:
        path: File of a run, or folder of runs.
        config: Configuration of the backend, without an accumulator.
        console: Where to say what was done.

    Raises:
        Exception: What the backend raises when it cannot be opened.
    """
    for run in read(path):
        tracker = tracker_from_config(config)
        position = Position(run, config)
        records = list(run.records())
        sent = _earlier(records, position)
        if position.state is not None:
            tracker.load_state_dict(position.state)
            if sent == len(records):
                console.print(f"{run.path.name}: all {sent:,} points are in run {tracker.run_id}", highlight=False)
                continue
        else:
            sent = 0
        with tracker.open(RunConfig(name=run.name, description=run.description, hparams=run.hparams)) as opened:
            _send(opened, tracker, records, sent, position, console, run.path.name)
        console.print(
            f"{run.path.name}: {len(records) - sent:,} points sent, {len(records):,} in run {tracker.run_id}",
            highlight=False,
        )


def _earlier(records: list[Record], position: Position) -> int:
    """Return how many points need not be sent."""
    sent = int(np.searchsorted([record.step for record in records], position.step))
    return sent if sent == position.points else 0


def _send(
    run: BaseTrackerRun,
    tracker: BaseTracker[Any],
    records: list[Record],
    sent: int,
    position: Position,
    console: Console,
    label: str,
) -> None:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    first = records[sent].step if sent < len(records) else 0
    position.move(tracker.state_dict(), first, sent)
    run.rewind(first)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(label, total=len(records), completed=sent)
        for part in _parts(records, sent):
            run.write(progress.track(part, task_id=bar))
            run.flush()
            sent += len(part)
            position.move(tracker.state_dict(), part[-1].step + 1, sent)


def _parts(records: list[Record], begin: int) -> Iterator[list[Record]]:
    """Yield points in parts that end where a step ends."""
    while begin < len(records):
        end = min(begin + _FLUSH_EVERY, len(records))
        while end < len(records) and records[end].step == records[end - 1].step:
            end += 1
        yield records[begin:end]
        begin = end
