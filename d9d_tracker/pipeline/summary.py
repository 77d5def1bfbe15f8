"""What the end of a run prints on a terminal: where it is, how to open it, and what became of it."""

import io
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from d9d_tracker.delivery.report import RunReport
from d9d_tracker.record import Histogram, Record

from .nonfinite import in_words

_LAST_VALUES = 8


def last_values(records: Sequence[Record]) -> dict[str, Record]:
    """Return the last point of each scalar series, by its name and tags in words, of points in the order of steps."""
    last: dict[str, Record] = {}
    for record in reversed(records):
        if not isinstance(record.value, Histogram):
            tags = "".join(f" {tag}={value}" for tag, value in record.context.items())
            last.setdefault(record.name + tags, record)
    return dict(reversed(last.items()))


def words_of_end(error: BaseException, name: str, step: int, records: Sequence[Record]) -> str:
    """Return how a run ended that failed at a step, with the last values of its last window."""
    values = [f"{series} {one.value:.6g} (step {one.step:,})" for series, one in last_values(records).items()]
    more = f"; and {len(values) - _LAST_VALUES} more" if len(values) > _LAST_VALUES else ""
    words = f"run {name!r} was ended at step {step:,} by {type(error).__name__}: {error}"
    return f"{words}; last values: {', '.join(values[:_LAST_VALUES])}{more}" if values else words


def print_summary(
    console: Console, name: str, openers: Mapping[str, str], report: RunReport, records: Sequence[Record], copies: int
) -> None:
    """Print what became of a run, and by which commands or addresses, by the backend's name, it is shown."""
    if isinstance(console.file, io.TextIOWrapper):
        console.file.reconfigure(errors="backslashreplace")  # of names that the terminal has no letters for
    table = Table(
        title=Text(name, style="bold"), title_justify="left", show_header=False, box=box.SIMPLE, pad_edge=False
    )
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    values = last_values(records)
    for series, record in list(values.items())[:_LAST_VALUES]:
        table.add_row(Text(series), Text(f"{record.value:.6g}"))
    if len(values) > _LAST_VALUES:
        table.add_row("", f"and {len(values) - _LAST_VALUES} more series")
    kind = "copy" if copies == 1 else "copies"
    table.add_row("points", f"{report.delivered:,} written, in {copies:,} {kind} to the host")
    most = ", ".join(f"{name} ({count:,})" for name, count in report.refused.most_common(3))
    losses = (
        ("refused", report.refused.total(), f" by a backend: {most}"),
        ("dropped", report.dropped, " that a full or damaged backlog has lost"),
        ("waiting", report.undelivered, " in the backlog: python -m d9d_tracker deliver"),
        ("lost", report.unread, " windows that never left the device or another rank"),
        ("without a slot", report.without_slot, ": raise max_scalars or max_histograms"),
    )
    for label, count, words in losses:
        if count:
            table.add_row(label, Text(f"{count:,}{words}", style="bold red"))
    if report.nonfinite:
        table.add_row("not finite", Text(in_words(report.nonfinite), style="bold red"))
    console.print(table)
    for backend, opener in openers.items():  # on a line of its own, which can be pasted however narrow the terminal is
        label = f"open {backend}" if len(openers) > 1 else "open"
        console.print(Text(f" {label}  ", style="dim").append(opener, style="not dim"), soft_wrap=True)
