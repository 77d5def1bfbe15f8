"""Runs in JSON files are sent to another backend: what is stopped and run again goes on, and doubles nothing."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from d9d_tracker.base import BaseTrackerRun, RunConfig
from d9d_tracker.config import TrackerConfig
from d9d_tracker.factory import AnyTrackerConfig, tracker_from_config
from d9d_tracker.reading import StoredRun, read
from d9d_tracker.record import Record

from .replay_position import Position

_FLUSH_EVERY = 20_000  # points


class _Failed(Exception):  # noqa: N818 it stands for an error of any name
    """What closes a run as one that an exception ended."""


class _Killed(BaseException):
    """What closes a run as one that was interrupted."""


def config_from(provider: str | None, settings: list[str], file: Path | None) -> TrackerConfig:
    """Make a backend's configuration of a JSON file, if any, amended by settings ``NAME=VALUE``."""
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
    if "provider" not in data:
        raise ValueError("no backend is named: give --provider NAME, or a file by --config that has a provider")
    try:
        config: TrackerConfig = TypeAdapter[Any](AnyTrackerConfig).validate_python({**data, "accumulator": None})
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'provider'}: {one['msg']}" for one in error.errors())
        raise ValueError(f"no configuration of a backend: {faults}. Give fields by --set NAME=VALUE") from None
    return config


def replay(path: Path, config: TrackerConfig, console: Console) -> list[str]:
    """Send runs to another backend, with their names, hyperparameters, contexts, steps and times.

    Stopped and run again, it goes on with the first step that the backend may lack, and takes back what it has of it.
    So it does with what a job has logged since. Points that have changed, as when the job was resumed from a checkpoint
    meanwhile, are sent again with all that follows them; to a run of their own, if the backend cannot amend a step.
    Returns what is wrong with files that could not be read.
    """
    faults = []
    for run in read(path):
        try:
            records, hparams = list(run.records()), run.hparams
        except ValueError as error:
            faults.append(str(error))
            continue
        try:
            _replay_one(run, records, hparams, config, console)
        except Exception as error:
            words = " ".join(str(error).split()) or type(error).__name__
            raise OSError(f"{run.path.name}: {words}. Run the command again to go on") from error
    return faults


def _replay_one(
    run: StoredRun, records: list[Record], hparams: dict[str, Any], config: TrackerConfig, console: Console
) -> None:
    def say(words: str) -> None:
        console.print(f"{run.path.name}: {words}", highlight=False, markup=False, soft_wrap=True)

    tracker, position, end = tracker_from_config(config), Position.of(run, config), run.end
    if position.opening:
        say(f"an earlier replay was stopped as it opened a run {run.name!r}, of which one without points may be left")
    has_changed = position.forget_changed(records)
    if has_changed and position.state is not None and not tracker.amends:
        say(f"points have changed that cannot be replaced in run {position.state.get('run_id')}: sent to a new one")
        position.state, position.marks = None, []
    is_new = position.state is None
    if position.state is not None:
        tracker.load_state_dict(position.state)
        if position.last.points == len(records) and hparams == position.hparams and end in (None, position.end):
            say(f"all {len(records):,} points are in run {tracker.run_id}")
            return
    sent = position.last.points
    position.opening = is_new
    position.save()
    ended = None if end is None else end.time
    properties = RunConfig(
        name=run.name, description=run.description, hparams=hparams, started=run.started, ended=ended
    )
    try:
        with tracker.open(properties) as opened:
            position.state, position.opening = tracker.state_dict(), False
            if is_new:
                position.hparams = hparams
            position.save()
            opened.rewind(position.last.step)
            _send_hparams(opened, hparams, position, say)
            _send(opened, records, position, console, run.path.name)
            if end is not None and end.error is not None:
                raise _as_it_ended(end.outcome, end.error)
    except (_Failed, _Killed) as outcome:
        for note in getattr(outcome, "__notes__", ()):
            say(note)
    position.end = end
    position.save()
    say(f"{len(records) - sent:,} points sent, {len(records):,} in run {tracker.run_id}")


def _as_it_ended(outcome: str, error: str) -> Any:
    name, _, message = error.partition(": ")
    return type(name, (_Killed if outcome == "killed" else _Failed,), {})(message)


def _send_hparams(run: BaseTrackerRun, hparams: dict[str, Any], position: Position, say: Callable[[str], None]) -> None:
    """Send hyperparameters that came or changed after the run was opened at its destination."""
    later = {name: value for name, value in hparams.items() if position.hparams.get(name, ...) != value}
    taken = {}
    for name, value in later.items():
        try:
            run.add_hparams({name: value})
            taken[name] = value
        except Exception as error:  # some take none later, some refuse to change one
            say(f"hyperparameter {name!r} was set later: {' '.join(str(error).split())}")
    if taken:
        run.flush()
        position.hparams |= taken
        position.save()


def _send(run: BaseTrackerRun, records: list[Record], position: Position, console: Console, label: str) -> None:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(label, total=len(records), completed=position.last.points)
        for part in _parts(records, position.last.points):
            position.begin(part)
            run.write(progress.track(part, task_id=bar))
            run.flush()
            position.move()


def _parts(records: list[Record], begin: int) -> Iterator[list[Record]]:
    """Yield points in parts that end where a step ends."""
    while begin < len(records):
        end = min(begin + _FLUSH_EVERY, len(records))
        while end < len(records) and records[end].step == records[end - 1].step:
            end += 1
        yield records[begin:end]
        begin = end
