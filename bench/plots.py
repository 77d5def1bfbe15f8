"""The plots: ours in orange, everyone else in grey, and an untracked step as the line to come close to."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt  # after the choice of a backend that needs no display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .contenders import PLACES
from .interleave import Spread
from .report import Result, Row
from .style import COLOURS, FAINT, INK, STYLE

_LEGEND = {"ours": "d9d_tracker", "package": "other packages", "by hand": "written by hand"}


def draw(results: Sequence[Result], folder: Path, device: str) -> list[Path]:
    """Draw a plot for each result that has one, and one of what matters most.

    Args:
        results: What was measured.
        folder: Where the plots go.
        device: Words for what it was measured on, shown in each plot.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {result.key: result for result in results}
    files = []
    with plt.rc_context(STYLE):
        for key, plot in _PLOTS.items():
            if key in found:
                files.append(_save(plot(found[key]), folder / f"{found[key].series['plot']}.png", device))
        if {"a", "b", "d"} <= found.keys():
            files.insert(0, _save(_overview(found), folder / "overview.png", device))
    return files


def _save(figure: Figure, path: Path, device: str) -> Path:
    figure.text(0.995, -0.005, device, ha="right", va="top", fontsize=7.5, color=COLOURS["package"])
    figure.savefig(path, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return path


def _bars(axes: Axes, rows: Sequence[Row], column: str, form: str, *, log: bool = False, first: float = 0.0) -> None:
    """Draw one horizontal bar a row, best on top, with its quartiles."""
    shown = [(row, cell) for row in rows if isinstance(cell := row.cells.get(column), Spread)]
    shown.sort(key=lambda pair: -pair[1].median)
    for position, (row, cell) in enumerate(shown):
        axes.barh(position, cell.median - first, left=first, color=COLOURS[row.kind], height=0.72, zorder=2)
        axes.plot([cell.low, cell.high], [position, position], color=INK, linewidth=1.1, zorder=3)
        axes.annotate(
            f"{cell.median:{form}}",
            (max(cell.high, cell.median), position),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            fontweight="bold" if row.kind == "ours" else "normal",
            color=COLOURS["ours"] if row.kind == "ours" else INK,
        )
    axes.set_yticks(range(len(shown)), [row.name for row, _ in shown], fontsize=8.5)
    for label, (row, _) in zip(axes.get_yticklabels(), shown, strict=True):
        if row.kind == "ours":
            label.set(color=COLOURS["ours"], fontweight="bold")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=FAINT, zorder=0)
    if log:
        axes.set_xscale("log")
    else:
        highest = max(cell.high for _, cell in shown)
        axes.set_xlim(min(first, *(cell.low for _, cell in shown)), first + 1.14 * (highest - first))


def _ratio_bars(axes: Axes, rows: Sequence[Row], title: str, form: str = ".2f", of: str = "time") -> None:
    column = "vs untracked"
    spreads = [cell for row in rows if isinstance(cell := row.cells.get(column), Spread)]
    rows = [replace(row, name="untracked, beside itself") if row.kind == "baseline" else row for row in rows]
    lowest, highest = min(cell.low for cell in spreads), max(cell.high for cell in spreads)
    wide = highest > 4
    _bars(axes, rows, column, form, log=wide, first=1.0)
    if wide:
        right = highest * highest**0.15  # room for the figure beside the longest bar
        axes.set_xlim(min(0.9, lowest), right)
        ticks = [tick for tick in (1, 2, 3, 5, 10, 20, 50, 100, 200, 500) if tick <= right]
        axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
        axes.minorticks_off()
    axes.axvline(1.0, color=COLOURS["baseline"], linewidth=1.4, zorder=4)
    axes.set_title(title)
    axes.set_xlabel(f"{of} of a step ÷ untracked step" + " (log scale)" * wide)


def _scalars(result: Result, form: str = ".2f", of: str = "time") -> Figure:
    groups = list(dict.fromkeys(row.group for row in result.rows))
    heights = [sum(row.group == group for row in result.rows) for group in groups]
    figure, axes = plt.subplots(
        len(groups), 1, figsize=(8.5, 0.24 * sum(heights) + 1.0 * len(groups)), height_ratios=heights, squeeze=False
    )
    for axis, group in zip(axes.flat, groups, strict=True):
        rows = [row for row in result.rows if row.group == group]
        _ratio_bars(axis, rows, f"{group} in a compiled MLP step", form, of)
    return figure


def _gpt(result: Result) -> Figure:
    figure, axes = plt.subplots(figsize=(8.5, 0.3 * len(result.rows) + 1.2))
    _ratio_bars(axes, result.rows, result.title)
    return figure


def _histograms(result: Result) -> Figure:
    dtypes = list(dict.fromkeys(row.group.split()[1] for row in result.rows))
    figure, axes = plt.subplots(1, len(dtypes), figsize=(7.5 * len(dtypes), 4.6), sharey=True, squeeze=False)
    for axis, dtype in zip(axes.flat, dtypes, strict=True):
        rows = [row for row in result.rows if row.group.split()[1] == dtype]
        sizes = list(dict.fromkeys(row.group.split()[0] for row in rows))
        labels = []
        for index, name in enumerate(dict.fromkeys(row.name for row in rows)):
            found = {row.group.split()[0]: row.cells["reads"] for row in rows if row.name == name}
            cells = [cell for size in sizes if isinstance(cell := found.get(size), Spread)]  # the largest may lack
            kind = next(row.kind for row in rows if row.name == name)
            axis.plot(
                range(len(cells)),
                [cell.median for cell in cells],
                marker="osD^v"[index % 5],
                color=COLOURS[kind],
                linewidth=2.4 if kind == "ours" else 1.4,
                linestyle=("-", "--")[index % 2],
            )
            axis.fill_between(
                range(len(cells)), [c.low for c in cells], [c.high for c in cells], color=COLOURS[kind], alpha=0.15
            )
            labels.append((cells[-1].median, name, kind))
        axis.axhline(1.0, color=COLOURS["baseline"], linewidth=1.4)
        axis.annotate("one read of the tensor", (0, 1.0), xytext=(0, 4), textcoords="offset points", fontsize=8.5)
        axis.set_yscale("log")
        axis.set_xticks(range(len(sizes)), sizes)
        axis.set_xlim(-0.1, 1.45 * (len(sizes) - 1))
        axis.set_ylim(bottom=0.7)
        _label_ends(axis, len(sizes) - 1, labels)
        axis.grid(axis="y", color=FAINT)
        axis.set_title(f"A histogram of {dtype} values: cost in reads of the tensor")
        axis.set_xlabel("elements")
        axis.set_ylabel("time ÷ time of one read (log scale)")
    return figure


def _label_ends(axes: Axes, x: float, labels: list[tuple[float, str, str]]) -> None:
    """Name lines at their right ends, pushed apart where they would overlap; the axes' limits must be final."""
    top = 0.0
    for height, name, kind in sorted(labels):
        place = axes.transAxes.inverted().transform(axes.transData.transform((x, height)))[1]
        top = max(float(place), top + 0.048 if top else 0.0)
        axes.annotate(
            name,
            (x, top),
            xycoords=("data", "axes fraction"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            fontweight="bold" if kind == "ours" else "normal",
            color=COLOURS["ours"] if kind == "ours" else INK,
        )


def _slow_backend(result: Result) -> Figure:
    figure, axes = plt.subplots(figsize=(8.5, 4.2))
    _pace(axes, result)
    return figure


def _pace(axes: Axes, result: Result) -> None:
    kinds = {row.name: row.kind for row in result.rows}
    labels = []
    for name, stamps in result.series["stamps"].items():
        colour = COLOURS[kinds[name]]
        style = {"ours": (3.2, "-", 5), "baseline": (1.6, ":", 6)}.get(kinds[name], (1.6, "-", 3))
        axes.plot(range(1, len(stamps) + 1), stamps, color=colour, lw=style[0], ls=style[1], zorder=style[2])
        labels.append((stamps[-1], name, kinds[name]))
    steps = len(next(iter(result.series["stamps"].values())))
    axes.set_xlim(0, steps * 1.45)
    axes.set_ylim(0, 1.06 * max(height for height, _, _ in labels))
    _label_ends(axes, steps, labels)
    axes.grid(axis="y", color=FAINT)
    axes.set_xticks(range(0, steps + 1, max(1, steps // 6)))
    axes.set_title("A backend that takes 50 ms per write: who waits for it?")
    axes.set_xlabel("steps done")
    axes.set_ylabel("seconds since the first step")


def _flush(result: Result) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(10, 2.4))
    for axis, column in zip(axes, result.columns, strict=True):
        _bars(axis, list(reversed(result.rows)), column, ",.0f")
        axis.set_title(column.capitalize() + ", until they are in the file")
    return figure


def _memory(result: Result) -> Figure:
    figure, axes = plt.subplots(figsize=(8.5, 4.6))
    steps = result.series["steps"]
    labels = []
    for row in result.rows:
        if row.kind == "baseline":
            continue
        heights = [max(1.0, float(row.cells[f"{step:,} steps"])) for step in steps]  # pyright: ignore[reportArgumentType] always numbers here
        axes.plot(steps, heights, marker="o", ms=4, color=COLOURS[row.kind], lw=2.4 if row.kind == "ours" else 1.4)
        labels.append((heights[-1], row.name, row.kind))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(right=steps[-1] * 12)
    _label_ends(axes, steps[-1], labels)
    axes.set_xticks(steps, [f"{step:,}" for step in steps])
    axes.minorticks_off()
    axes.grid(axis="y", color=FAINT)
    axes.set_title("Bytes held per scalar series, device and host")
    axes.set_xlabel("steps logged (log scale)")
    axes.set_ylabel("bytes (log scale)")
    return figure


def _overview(found: dict[str, Result]) -> Figure:
    figure = plt.figure(figsize=(11, 8.2))
    grid = figure.add_gridspec(2, 2, height_ratios=(1.15, 1))
    group = next((row.group for row in found["a"].rows if row.group.startswith("10 ")), found["a"].rows[-1].group)
    elsewhere = tuple(f", {words}" for words in PLACES.values())  # than by default
    scalars = [row for row in found["a"].rows if row.group == group and not row.name.endswith(elsewhere)]
    _ratio_bars(figure.add_subplot(grid[0, 0]), scalars, f"{group} in a compiled MLP step")
    _ratio_bars(figure.add_subplot(grid[0, 1]), found["b"].rows, found["b"].title.replace(", ", ",\n", 1))
    _pace(figure.add_subplot(grid[1, :]), found["d"])
    figure.suptitle("What tracking costs the training loop: time per step, shorter is better", fontweight="bold")
    patches = [Patch(color=COLOURS[kind], label=words) for kind, words in _LEGEND.items()]
    figure.legend(handles=patches, loc="outside lower left", ncols=3, frameon=False, fontsize=8.5)
    return figure


_PLOTS: dict[str, Callable[[Result], Figure]] = {
    "a": _scalars,
    "b": _gpt,
    "c": _histograms,
    "d": _slow_backend,
    "e": _flush,
    "f": _memory,
    "i": functools.partial(_scalars, form=".3f", of="instructions"),
}
