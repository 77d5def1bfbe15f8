"""One picture of runs in JSON files: curves, quantile bands and heat maps, runs side by side."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from d9d_tracker.reading import Histograms, Scalars, StoredRun, read

from .panels import COLORS, draw_bands, draw_curves, draw_heat_map
from .show import differing, in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

T = TypeVar("T", Scalars, Histograms)
_PANEL_INCHES = (4.6, 2.7)
_COLUMNS = 3
_SMOOTH_FROM = 400  # points; below, every one can be seen


def plot(
    paths: list[Path],
    patterns: list[str],
    out: Path,
    steps: tuple[int, int] | None = None,
    clip: float = 98.0,
    smooth: int | None = None,
    log: bool = False,
    most: int = 24,
) -> list[str]:
    """Draw runs into a picture.

    Args:
        paths: Files of runs, or folders of them.
        patterns: Which series, as the shell's; all without any.
        out: The picture; its ending says which format.
        steps: The first and the last step to draw; all by default.
        clip: Percentage of a panel's points in view, which keeps a spike from flattening the curve.
        smooth: Number of points in the running mean; by default a fiftieth of a long curve.
        log: Whether curves have a logarithmic axis.
        most: Number of series drawn at most.

    Returns:
        Names of the series that were not drawn because there were too many.

    Raises:
        ImportError: If matplotlib is not installed.
        FileNotFoundError: If there is no run.
        ValueError: If no series matches, or the file is no run.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("`plot` draws with matplotlib: pip install 'd9d_tracker[plot]'") from error
    runs = [run for path in paths for run in read(path)]
    loaded = [[one for series in run.load(*patterns) if len((one := _within(series, steps)).steps)] for run in runs]
    scalars = _names(loaded, Scalars)
    histograms = _names(loaded, Histograms)
    if not scalars and not histograms:
        known = sorted({series.name for run in runs for series in run.series()})
        raise ValueError(f"no points of a series {', '.join(patterns) or '*'}; there are: {', '.join(known) or 'none'}")
    left_out = [*scalars, *histograms][most:]
    scalars, histograms = scalars[:most], histograms[: max(0, most - len(scalars))]
    labels = _labels(runs)
    figure = Figure(layout="constrained")
    # A histogram has a row: its quantiles, and a heat map for each run.
    wide = 1 + max((len(_of(loaded, labels, name, Histograms)) for name in histograms), default=0)
    columns = max(min(_COLUMNS, len(scalars)), wide if histograms else 0)
    rows = -(-len(scalars) // columns)
    figure.set_size_inches(columns * _PANEL_INCHES[0], (rows + len(histograms)) * _PANEL_INCHES[1] + 0.4)
    figure.suptitle(", ".join(dict.fromkeys(run.name for run in runs)), x=0.01, ha="left", fontweight="bold")
    parts = figure.subfigures(rows + len(histograms), 1, squeeze=False)[:, 0]
    for row in range(rows):
        names = scalars[row * columns : (row + 1) * columns]
        _draw_scalars(parts[row], names, loaded, labels, columns, smooth, clip, log)
    for part, name in zip(parts[rows:], histograms, strict=True):
        _draw_histograms(part, name, loaded, labels, columns)
    out.parent.mkdir(parents=True, exist_ok=True)
    _save(figure, out)
    return left_out


def _save(figure: "Figure", out: Path) -> None:
    try:
        figure.savefig(out, dpi=130)
    except ValueError as error:
        raise ValueError(f"--out {out}: {error}") from None


def _within(series: Scalars | Histograms, steps: tuple[int, int] | None) -> Scalars | Histograms:
    if steps is None:
        return series
    kept = (series.steps >= steps[0]) & (series.steps <= steps[1])
    times = series.times[kept]
    if isinstance(series, Scalars):
        return replace(series, steps=series.steps[kept], values=series.values[kept], times=times)
    values = [value for value, is_kept in zip(series.values, kept, strict=True) if is_kept]
    return replace(series, steps=series.steps[kept], values=values, times=times)


def _names(loaded: list[list[Scalars | Histograms]], kind: type) -> list[str]:
    return list(dict.fromkeys(one.name for own in loaded for one in own if isinstance(one, kind)))


def _of(loaded: list[list[Scalars | Histograms]], labels: list[str], name: str, kind: type[T]) -> list[tuple[str, T]]:
    """Return the series of a name in all runs, with what the legend calls them."""
    return [
        ("  ".join(filter(None, (label, in_words(series.context)))), series)
        for label, own in zip(labels, loaded, strict=True)
        for series in own
        if isinstance(series, kind) and series.name == name
    ]


def _labels(runs: list[StoredRun]) -> list[str]:
    if len(runs) == 1:
        return [""]
    labels = []
    for run, hparams in zip(runs, differing(runs), strict=True):
        labels.append(in_words(hparams) if hparams else run.path.stem)
    return labels


def _draw_scalars(
    part: "SubFigure",
    names: list[str],
    loaded: list[list[Scalars | Histograms]],
    labels: list[str],
    columns: int,
    smooth: int | None,
    clip: float,
    log: bool,
) -> None:
    for axes, name in zip(part.subplots(1, columns, squeeze=False)[0], [*names, *[None] * columns], strict=False):
        if name is None:
            axes.set_visible(False)
            continue
        curves = _of(loaded, labels, name, Scalars)
        longest = max(len(series.steps) for _, series in curves)
        points = smooth or (longest // 50 if longest >= _SMOOTH_FROM else 1)
        if log:
            axes.set_yscale("log")
        draw_curves(axes, curves, points, clip)
        _finish(axes, name)


def _draw_histograms(
    part: "SubFigure", name: str, loaded: list[list[Scalars | Histograms]], labels: list[str], columns: int
) -> None:
    all_axes = part.subplots(1, columns, squeeze=False)[0]
    found = _of(loaded, labels, name, Histograms)
    for axes in all_axes[1 + len(found) :]:
        axes.set_visible(False)
    for index, (label, series) in enumerate(found):
        draw_bands(all_axes[0], series, COLORS[index % len(COLORS)], label)
        draw_heat_map(all_axes[1 + index], series)
        _finish(all_axes[1 + index], f"{name}  {label}".strip())
    _finish(all_axes[0], f"{name}: median, 50, 90 and 98%")


def _finish(axes, title: str) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(visible=True, color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if any(axes.get_legend_handles_labels()[1]):
        axes.legend(fontsize=7, frameon=False)
