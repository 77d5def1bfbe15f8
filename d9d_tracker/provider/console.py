"""Backend that shows the latest values: a live table on a terminal, log lines elsewhere."""

import io
import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import Field
from rich import get_console
from rich.console import Console
from rich.errors import LiveError
from rich.live import Live
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from d9d_tracker.backend import RecordRun, RecordTracker
from d9d_tracker.base import RunConfig
from d9d_tracker.config import TrackerConfig
from d9d_tracker.log import logger
from d9d_tracker.record import Histogram, Record

from .rebin import rebin

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.-:=+*#"
_TREND = 32


class ConsoleTrackerConfig(TrackerConfig):
    """Configuration of the backend that shows the latest values.

    Attributes:
        provider: Discriminator, always ``"console"``.
        log_every: Where there is no terminal: seconds that pass at least between two groups of log lines. A flush
            and the end of the run write what is left at once.
    """

    provider: Literal["console"] = "console"
    log_every: float = Field(default=10.0, ge=0)


def sparkline(values: list[float], blocks: str = BLOCKS) -> str:
    """Draw numbers, the oldest first, as one block each, by their height; ``!`` where one is not finite."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    # Halved, because the span of two finite numbers can overflow.
    span = high / 2 - low / 2
    top = len(blocks) - 1

    def block(value: float) -> str:
        if not math.isfinite(value):
            return "!"
        return blocks[round((value / 2 - low / 2) / span * top)] if span > 0 else blocks[top // 2]

    return "".join(block(value) for value in values)


def bars(histogram: Histogram, bins: int = 24, blocks: str = BLOCKS) -> str:
    """Draw a histogram between its minimum and maximum as an even number of characters, a blank for none."""
    if not histogram.count:
        return ""
    counts, _, _ = rebin(histogram, bins)
    heights = np.ceil(counts / counts.max() * len(blocks)).astype(int)
    return "".join(blocks[height - 1] if height else " " for height in heights)


def _describe(value: float | Histogram) -> str:
    if not isinstance(value, Histogram):
        return f"{value:.5g}"
    parts = [f"n={value.count}"]
    if value.count:
        parts += [f"p{q:02}={value.quantile(q / 100):.5g}" for q in (5, 50, 95)]
    counts = {"nan": value.nan, "inf": value.posinf, "-inf": value.neginf}
    parts += [f"{key}={count}" for key, count in counts.items() if count]
    return " ".join(parts)


@dataclass(slots=True)
class _Series:
    record: Record
    trend: deque[float] = field(default_factory=lambda: deque(maxlen=_TREND))
    logged: bool = False


class ConsoleRun(RecordRun):
    """A run whose latest values are on screen, or in the log.

    On an interactive terminal a table is redrawn in place, four times a second, by a thread of its own, and stays when
    the run closes. The cursor and the terminal's modes are left as they are, so that even a killed program leaves it
    usable. Elsewhere each series' latest value goes to the logger ``d9d_tracker`` at level INFO, one line per context.
    """

    def __init__(self, properties: RunConfig, run_id: str, config: ConsoleTrackerConfig, console: Console):
        super().__init__(run_id)
        self._name = properties.name
        self._log_every = config.log_every
        self._console = console
        if isinstance(console.file, io.TextIOWrapper):
            console.file.reconfigure(errors="backslashreplace")  # of names that the terminal has no letters for
        self._logged_at = time.monotonic()
        self._blocks = ASCII_BLOCKS if console.options.ascii_only else BLOCKS
        # Held for a dictionary access or the drawing of one table: the drawing thread reads what the writer writes.
        self._lock = threading.Lock()
        self._series: dict[tuple[str, tuple[tuple[str, str], ...]], _Series] = {}
        self._live = self._start_live(console) if console.is_interactive and console.file.isatty() else None
        if self._live is None and not logger.isEnabledFor(logging.INFO):
            logger.warning(
                "run %r: not on a terminal, and logging shows nothing of level INFO, so its values will not be seen; "
                "call logging.basicConfig(level=logging.INFO)",
                self._name,
            )

    def _start_live(self, console: Console) -> Live | None:
        live = Live(console=console, get_renderable=self.table)
        try:
            live.start()
        except LiveError:
            words = "run %r: another live display is open, so values go to the log instead of a table"
            logger.warning(words, self._name)
            return None
        console.show_cursor(True)
        return live

    def table(self) -> Table:
        """Draw the latest value of each series: of as many as there is room for, and of all when the run has ended."""
        table = Table(title=Text(self._name), title_justify="left")
        table.add_column("series", overflow="fold")
        table.add_column("step", justify="right")
        table.add_column("value", overflow="fold")
        table.add_column("", no_wrap=True)
        with self._lock:
            room = None if self._closed else self._console.height  # drawing takes the interpreter from the training
            for series in itertools.islice(self._series.values(), room):
                table.add_row(*self._row(series))
        return table

    def _row(self, series: _Series) -> tuple[Text, Text, Text, Text]:
        record = series.record
        name = Text(record.name)
        if record.context:
            name.append(" " + _tags(record.context), style="dim")
        if isinstance(record.value, Histogram):
            alarming = record.value.nan + record.value.posinf + record.value.neginf > 0
            drawing = bars(record.value, blocks=self._blocks)
        else:
            alarming = not math.isfinite(record.value)
            drawing = sparkline(list(series.trend), self._blocks)
        value = Text(_describe(record.value), "bold red" if alarming else "")
        return name, Text(str(record.step)), value, Text(drawing)

    @override
    def sync(self) -> None:
        if self._live is None:
            self._log()
        else:
            self._live.refresh()

    @override
    def add_hparams(self, hparams: Mapping[str, Any]) -> None:
        pass

    @override
    def write_record(self, record: Record) -> None:
        if record.step > self.step and self._live is None and time.monotonic() - self._logged_at >= self._log_every:
            self._log()
        key = (record.name, tuple(sorted(record.context.items())))
        with self._lock:
            series = self._series.setdefault(key, _Series(record))
            series.record, series.logged = record, False
            if not isinstance(record.value, Histogram):
                series.trend.append(record.value)

    def _log(self) -> None:
        self._logged_at = time.monotonic()
        lines: dict[tuple[tuple[str, str], ...], list[str]] = {}
        for (_, tags), series in self._series.items():
            if not series.logged:
                series.logged = True
                value = _describe(series.record.value)
                value = f"[{value}]" if isinstance(series.record.value, Histogram) else value
                lines.setdefault(tags, []).append(f"{series.record.name}@{series.record.step}={value}")
        for tags, values in lines.items():
            logger.info("%s %s%s", self._name, _tags(dict(tags)) + " " if tags else "", "  ".join(values))

    @override
    def release(self) -> None:
        if self._live is None:
            self._log()
        else:
            self._live.stop()


def _tags(context: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in context.items())


class ConsoleTracker(RecordTracker[ConsoleTrackerConfig]):
    """Opens runs whose latest values are on screen. Nothing is stored: a resumed run starts with an empty table."""

    @override
    def open_run(self, properties: RunConfig, run_id: str | None) -> ConsoleRun:
        return ConsoleRun(properties, run_id or properties.name, self.config, get_console())
