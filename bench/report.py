"""What a run of the benchmark leaves: a table on the terminal, a JSON file, and the README's latest results."""

import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from .interleave import Spread

Cell = str | int | float | Spread | None

_PACKAGES = (
    "d9d_tracker",
    "torch",
    "triton",
    "numpy",
    "torchmetrics",
    "lightning",
    "tensorboard",
    "wandb",
    "aim",
    "mlflow",
)


@dataclass
class Row:
    """One line of a table.

    Attributes:
        name: Whose.
        kind: Who it is: ``"baseline"``, ``"by hand"``, ``"package"`` or ``"ours"``.
        cells: Figures by column. None is shown as a dash.
        note: What a reader must know.
        group: What is the same for all rows of a group, for example the number of scalars.
    """

    name: str
    kind: str
    cells: dict[str, Cell]
    note: str = ""
    group: str = ""


@dataclass
class Result:
    """What one workload measured.

    Attributes:
        key: Its letter.
        title: What was measured.
        columns: Heading and format of each figure.
        rows: The figures.
        missing: Who did not take part, and why.
        remarks: What the figures can and cannot show.
        series: Further figures for plots.
    """

    key: str
    title: str
    columns: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    series: dict[str, Any] = field(default_factory=dict)


def machine(device: str) -> dict[str, Any]:
    """Describe what the figures were measured on."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = f"{_cpu_model()}, {cores} cores"
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": versions,
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def show(console: Console, result: Result) -> None:
    """Print a result as a table with its remarks."""
    table = Table(title=f"{result.key}. {result.title}", title_justify="left", title_style="bold")
    for heading in ("", *result.columns):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_column("note", overflow="fold", max_width=60, style="dim")
    group = ""
    for row in result.rows:
        if row.group != group:
            table.add_section()
            table.add_row(f"[italic]{row.group}")
            group = row.group
        cells = (text(row.cells.get(column), style) for column, style in result.columns.items())
        table.add_row(row.name, *cells, row.note, style="bold dark_orange3" if row.kind == "ours" else None)
    console.print(table)
    for line in (*result.remarks, *(f"Left out: {name}, {why}." for name, why in result.missing.items())):
        console.print(f"  {line}", style="dim", markup=False)
    console.print()


def text(cell: Cell, style: str) -> str:
    """Return a figure as text.

    Args:
        cell: The figure; a spread is shown as its median and quartiles.
        style: A format specification, for example ``".2f"``.
    """
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Spread):
        return f"{cell.median:{style}} ({cell.low:{style}} to {cell.high:{style}})"
    return f"{cell:{style}}"


def losses(rows: Sequence[Row], column: str, ours: str, why: str, *, highest: bool = False) -> list[str]:
    """Say where one of our rows is clearly beaten: where the quartiles do not overlap.

    Args:
        rows: The figures.
        column: Which of them.
        ours: Name of our row.
        why: What makes it so.
        highest: Whether the highest figure is the best, instead of the lowest.
    """
    remarks = []
    for group in dict.fromkeys(row.group for row in rows):
        cells = {row.name: row for row in rows if row.group == group and row.kind != "baseline"}
        own = cells[ours].cells[column] if ours in cells else None
        better = [
            row.name
            for row in cells.values()
            if row.kind != "ours"
            and isinstance(own, Spread)
            and isinstance(cell := row.cells.get(column), Spread)
            and (cell.low > own.high if highest else cell.high < own.low)
        ]
        if better:
            remarks.append(f"{group or 'Here'}: {'; '.join(better)} beat {ours} ({column}). {why}")
    return remarks


def write_json(path: Path, about: dict[str, Any], results: Sequence[Result]) -> None:
    """Write everything that was measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, "results": [asdict(result) for result in results]}, indent=1) + "\n")


def markdown(about: dict[str, Any], results: Sequence[Result], plots: Sequence[Path]) -> str:
    """Return the tables and plots as Markdown.

    Args:
        about: What ``machine`` returned.
        results: What was measured.
        plots: Paths of the plots, as a reader of the text reaches them.
    """
    known = ", ".join(f"{name} {number}" for name, number in about["versions"].items() if number)
    lines = [f"{about['date'][:10]}, {about['device']}, Python {about['python']}; {known}.", ""]
    for result in results:
        lines += [f"#### {result.key}. {result.title}", ""]
        lines += [f"![{result.title}]({plot})" for plot in plots if plot.stem == result.series.get("plot")]
        lines += ["", "| | " + " | ".join(result.columns) + " | note |", "|---" * (len(result.columns) + 2) + "|"]
        for row in result.rows:
            name = f"{row.group}: {row.name}" if row.group else row.name
            cells = [text(row.cells.get(column), style) for column, style in result.columns.items()]
            bold = "**" if row.kind == "ours" else ""
            lines.append("| " + " | ".join([f"{bold}{name}{bold}", *cells, row.note]) + " |")
        lines += ["", *(f"{remark}  " for remark in result.remarks)]
        lines += [f"Left out: {name}, {why}.  " for name, why in result.missing.items()]
        lines.append("")
    return "\n".join(lines)


def refresh(readme: Path, section: str, content: str) -> None:
    """Replace what stands between ``<!-- SECTION -->`` and ``<!-- end SECTION -->`` in a file."""
    before, begin, rest = readme.read_text().partition(f"<!-- {section} -->\n")
    _, end, after = rest.partition(f"<!-- end {section} -->")
    if not (begin and end):
        raise ValueError(f"{readme} has no section <!-- {section} --> … <!-- end {section} -->; add the two lines")
    readme.write_text(f"{before}{begin}\n{content.strip()}\n\n{end}{after}")
