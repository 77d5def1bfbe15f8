"""Runs in JSON files, on the terminal: a table of runs, or of one run's series with their trend."""

import contextlib
import time
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from d9d_tracker.provider.console import ASCII_BLOCKS, BLOCKS, bars, sparkline
from d9d_tracker.reading import Histograms, Scalars, StoredRun, read

from .labels import differing, flat, in_words

_WIDE_TERMINAL = 100
_WIDE, _NARROW = 32, 16
_SHORTEST_PAUSE = 1.0
_PAUSE_TO_WORK = 5.0  # a large file is read again less often


def show(path: Path, patterns: list[str], follow: bool, console: Console) -> None:
    """Print runs.

    Args:
        path: File of a run, or folder of runs.
        patterns: Which series to show of each run, as the shell's; without any, all of a single run, else none.
        follow: Whether to print again when the files change, until interrupted.
        console: Where to print.

    Raises:
        FileNotFoundError: If there is no run.
        ValueError: If the file is no run.
    """
    seen = _state(path)  # before it is read: what comes meanwhile is a change
    picture = _picture(read(path), patterns, console)
    if not follow:
        console.print(picture)
        return
    with contextlib.suppress(KeyboardInterrupt), Live(picture, console=console, auto_refresh=False) as live:
        pause = _SHORTEST_PAUSE
        while True:
            time.sleep(pause)
            if (state := _state(path)) != seen:
                began, seen = time.monotonic(), state
                live.update(_picture(read(path), patterns, console), refresh=True)
                pause = max(_SHORTEST_PAUSE, _PAUSE_TO_WORK * (time.monotonic() - began))


def _state(path: Path) -> list[tuple[str, int, int]]:
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in files if file.exists()]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _picture(runs: list[StoredRun], patterns: list[str], console: Console) -> RenderableType:
    parts: list[RenderableType] = [_table_of_runs(runs)] if len(runs) > 1 else []
    if len(runs) == 1 or patterns:
        parts += [_table_of_series(run, patterns, console) for run in runs]
    else:
        parts.append(Text("show one of the files, or --series GLOB, for its series", style="dim"))
    return Group(*parts)


def _table_of_runs(runs: list[StoredRun]) -> Table:
    table = Table("file", "run", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("series", "points", "last step"):
        table.add_column(column, justify="right")
    table.add_column("differs in", overflow="fold")
    for run, hparams in zip(runs, differing(runs), strict=True):
        series = run.series()
        table.add_row(
            Text(run.path.name),
            Text(run.name),
            str(len(series)),
            f"{sum(one.points for one in series):,}",
            str(max((one.last for one in series), default="")),
            Text(in_words(hparams)),
        )
    return table


def _table_of_series(run: StoredRun, patterns: list[str], console: Console) -> RenderableType:
    title = Text(f"{run.name}  ", style="bold").append(str(run.path), style="not bold dim")
    parts: list[RenderableType] = [title]
    if run.hparams:
        parts.append(Text(in_words(flat(run.hparams)), style="dim"))
    table = Table(Column("series", overflow="fold"), box=box.SIMPLE_HEAD, pad_edge=False)
    is_wide = console.width >= _WIDE_TERMINAL
    for column in ("points", "last", *(("min", "max") if is_wide else ())):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    blocks = ASCII_BLOCKS if console.options.ascii_only else BLOCKS
    characters = _WIDE if is_wide else _NARROW
    loaded = sorted(run.load(*patterns), key=lambda series: (isinstance(series, Histograms), series.name))
    for series in loaded:
        name = Text(series.name)
        if series.context:
            name.append(f" {in_words(series.context)}", style="dim")
        if isinstance(series, Histograms):
            last, *span, drawing = _of_histograms(series, blocks, characters)
        else:
            last, *span, drawing = _of_scalars(series, blocks, characters)
        table.add_row(name, f"{len(series.steps):,}", last, *(span if is_wide else ()), drawing)
    if loaded:
        parts[0] = title.append(f"  step {max(int(series.steps[-1]) for series in loaded):,}")
        parts.append(table)
    else:
        known = [one.name for one in run.series()]
        parts.append(
            Text(f"no series {', '.join(patterns)}; there are: {', '.join(known)}" if known else "no points yet")
        )
    return Group(*parts)


def _of_histograms(series: Histograms, blocks: str, characters: int) -> list[Text]:
    last = series.values[-1]
    low = min((one.min for one in series.values if one.count), default=np.nan)
    high = max((one.max for one in series.values if one.count), default=np.nan)
    drawing = Text(bars(last, characters, blocks))
    broken = [step for step, one in zip(series.steps, series.values, strict=True) if one.nan + one.posinf + one.neginf]
    if broken:
        drawing.append(f" not finite from {broken[0]}", style="bold red")
    return [Text(f"{last.mean:.2g} ± {last.std:.2g}"), Text(_number(low)), Text(_number(high)), drawing]


def _of_scalars(series: Scalars, blocks: str, characters: int) -> list[Text]:
    is_finite = np.isfinite(series.values)
    finite = series.values[is_finite]
    low, high = (finite.min(), finite.max()) if finite.size else (np.nan, np.nan)
    drawing = Text(sparkline(_trend(series.values, characters), blocks))
    if not is_finite.all():
        drawing.append(f" not finite from {series.steps[~is_finite][0]}", style="bold red")
    last = Text(_number(series.values[-1]), "" if is_finite[-1] else "bold red")
    return [last, Text(_number(low)), Text(_number(high)), drawing]


def _trend(values: np.ndarray, characters: int) -> list[float]:
    """Return means of consecutive values, few enough for a line of characters; not finite where one of them is not."""
    with np.errstate(invalid="ignore", over="ignore"):
        return [float(part.mean()) for part in np.array_split(values, min(characters, len(values)))]


def _number(value: float) -> str:
    return f"{value:.3g}"
