"""Runs in JSON files, on the terminal: a table of runs, or of one run's series with their trend."""

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from d9d_tracker.hparams import flat_hparams
from d9d_tracker.provider.console import ASCII_BLOCKS, BLOCKS, bars, sparkline
from d9d_tracker.reading import Histograms, Scalars, StoredRun, read

from .labels import differing, in_order, in_words, unmatched
from .pace import PATTERNS, pace

_WIDE_TERMINAL, _NARROW_TERMINAL = 100, 60
_WIDE, _NARROW = 32, 16
_SHORTEST_PAUSE = 1.0
_PAUSE_TO_WORK = 5.0  # a large file is read again less often
_WHOLE_FROM, _WHOLE_UP_TO = 1e5, 1e15
_ALL = sys.maxsize


def show(path: Path, patterns: list[str], follow: bool, console: Console) -> None:
    """Print the series of runs that match patterns, all of a single run without any; again as they change, if asked."""
    seen = _state(path)  # before it is read: what comes meanwhile is a change
    if not follow:
        for part in _parts(read(path), patterns, console, _ALL):
            is_line = isinstance(part, Text)  # which the terminal wraps, so that a path can be copied
            console.print(part, soft_wrap=is_line)
        return
    with (
        contextlib.suppress(KeyboardInterrupt),
        Live(_now(path, patterns, console), console=console, auto_refresh=False) as live,
    ):
        pause = _SHORTEST_PAUSE
        while True:
            time.sleep(pause)
            if (state := _state(path)) != seen:
                began, seen = time.monotonic(), state
                live.update(_now(path, patterns, console), refresh=True)
                pause = max(_SHORTEST_PAUSE, _PAUSE_TO_WORK * (time.monotonic() - began))


def _state(path: Path) -> list[tuple[str, int, int]]:
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in files if file.exists()]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _now(path: Path, patterns: list[str], console: Console) -> RenderableType:
    """Return a picture of what there is now, in as many rows as the terminal has room for."""
    try:
        runs = read(path)
    except (FileNotFoundError, ValueError):  # a file that has just begun is no run yet
        return Text(f"waiting for a run in {path}", style="dim")
    rows = console.height
    while True:
        picture = Group(*_parts(runs, patterns, console, rows))
        excess = len(console.render_lines(picture)) - console.height
        if excess <= 0 or rows == 1:
            return picture
        rows = max(1, rows - max(1, excess // (1 + len(runs) * bool(patterns))))


def _parts(runs: list[StoredRun], patterns: list[str], console: Console, rows: int) -> Iterator[RenderableType]:
    if len(runs) > 1:
        yield _table_of_runs(runs, rows)
    if len(runs) == 1 or patterns:
        for run in runs:
            yield from _parts_of_run(run, patterns, console, rows)
    else:
        yield Text("show one of the files, or --series GLOB, for its series", style="dim")


def _table_of_runs(runs: list[StoredRun], rows: int) -> Table:
    table = Table(Column("file", overflow="fold"), Column("run", overflow="fold"), box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("series", "points", "last step"):
        table.add_column(column, justify="right")
    table.add_column("differs in", overflow="fold")
    changed = sorted(runs, key=lambda run: run.path.stat().st_mtime_ns, reverse=True)[:rows]
    for run, hparams in zip(runs, differing(runs), strict=True):
        if run not in changed:
            continue
        name, differs = Text(run.path.name), Text(in_words(hparams))
        try:
            series = run.series()
        except ValueError as error:
            table.add_row(name, Text(run.name), "", "", "", Text(str(error), style="bold red"))
            continue
        points = f"{sum(one.points for one in series):,}"
        last = f"{max(one.last for one in series):,}" if series else ""
        table.add_row(name, Text(run.name), str(len(series)), points, last, differs)
    if len(runs) > rows:
        table.add_row(f"and {len(runs) - rows} more")
    return table


def _parts_of_run(run: StoredRun, patterns: list[str], console: Console, rows: int) -> Iterator[RenderableType]:
    title = Text(f"{run.name}  ", style="bold").append(str(run.path), style="not bold dim")
    try:
        loaded = run.load(*patterns)
        words = pace(run.load(*PATTERNS) if patterns else loaded)
        missing = unmatched(patterns, [one.name for one in run.series()])
    except ValueError as error:
        yield title
        yield Text(str(error), style="bold red")
        return
    if loaded:
        title.append(f"  step {max(int(series.steps[-1]) for series in loaded):,}")
    if words:
        title.append(f"  {words}", style="not bold")
    yield title
    if run.hparams:
        yield Text(in_words(flat_hparams(run.hparams)), style="dim")
    for words in missing or ([] if loaded else ["no points yet"]):
        yield Text(words)
    if loaded:
        yield _table_of_series(loaded, console, rows)


def _table_of_series(loaded: list[Scalars | Histograms], console: Console, rows: int) -> Table:
    table = Table(Column("series", overflow="fold"), box=box.SIMPLE_HEAD, pad_edge=False)
    is_wide = console.width >= _WIDE_TERMINAL
    for column in ("points", "last", *(("min", "max") if is_wide else ())):
        table.add_column(column, justify="right", no_wrap=True)
    if console.width >= _NARROW_TERMINAL:
        table.add_column("", no_wrap=True)
    blocks = ASCII_BLOCKS if console.options.ascii_only else BLOCKS
    characters = _WIDE if is_wide else _NARROW if console.width >= _NARROW_TERMINAL else 1
    changed = sorted(loaded, key=lambda series: int(series.steps[-1]), reverse=True)[:rows]
    for series in sorted(changed, key=lambda series: (isinstance(series, Histograms), in_order(series.name))):
        name = Text(series.name)
        if series.context:
            name.append(f" {in_words(series.context)}", style="dim")
        last, *span, drawing = _values_of(series, blocks, characters)
        drawings = (*(span if is_wide else ()), *((drawing,) if console.width >= _NARROW_TERMINAL else ()))
        table.add_row(name, f"{len(series.steps):,}", last, *drawings)
    if len(loaded) > rows:
        table.add_row(Text(f"and {len(loaded) - rows} more that changed earlier; --series GLOB chooses", style="dim"))
    return table


def _values_of(series: Scalars | Histograms, blocks: str, characters: int) -> list[Text]:
    """Return the last value, the least and the largest, and all of them in a line of characters."""
    if isinstance(series, Histograms):
        end, used = series.values[-1], [one for one in series.values if one.count]
        broken = np.array([one.nan + one.posinf + one.neginf for one in series.values]) > 0
        lows, highs = [one.min for one in used], [one.max for one in used]
        last, drawing = Text(f"{end.mean:.3g} ± {end.std:.2g}"), Text(bars(end, characters, blocks))
    else:
        broken = ~np.isfinite(series.values)
        lows = highs = series.values[~broken]
        last = Text(_number(series.values[-1]), "bold red" if broken[-1] else "")
        drawing = Text(sparkline(_trend(series.values, characters), blocks))
    if broken.any():
        drawing.append(f" not finite from {series.steps[broken][0]}", style="bold red")
    low, high = (np.min(lows), np.max(highs)) if len(lows) else (np.nan, np.nan)
    return [last, Text(_number(low)), Text(_number(high)), drawing]


def _trend(values: np.ndarray, characters: int) -> list[float]:
    """Return means of consecutive values, few enough for a line of characters; not finite where one of them is not."""
    with np.errstate(invalid="ignore", over="ignore"):
        return [float(part.mean()) for part in np.array_split(values, min(characters, len(values)))]


def _number(value: float) -> str:
    """Return a number with the digits to tell steps and counts of tokens apart."""
    if math.isfinite(value) and (value == round(value) or abs(value) >= _WHOLE_FROM) and abs(value) < _WHOLE_UP_TO:
        return f"{value:,.0f}"
    return f"{value:.5g}"
