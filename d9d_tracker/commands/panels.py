"""The panels of a plot: curves of scalars; quantile bands and heat maps of histograms over time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from d9d_tracker.reading import Histograms, Scalars
from d9d_tracker.record import Histogram

from .smoothing import smoothed, thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#2a6fb0", "#d1603d", "#3a9a6b", "#8a5fb8", "#c2932b", "#4fa7b5", "#b84f7d", "#6b6b6b")
LINES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
_RED = "#c01f1f"
_BANDS = ((0.01, 0.99, 0.15), (0.05, 0.95, 0.25), (0.25, 0.75, 0.4))
_OF_MANY = ((0.0, 1.0, 0.15), (0.25, 0.75, 0.35))
_SMOOTH_FROM = 400  # points; below, every one can be seen
_DOTS_UP_TO = 40  # points
_ROWS = 120
_COLUMNS = 400
_MAKES_A_DIFFERENCE = 4  # a curve should not lose its ends to a rule


class Look(NamedTuple):
    """How a series is drawn in all panels; the line is matplotlib's word for it."""

    color: str
    line: Literal["-", "--", ":", "-."]


def view_of(lows: np.ndarray, highs: np.ndarray, clip: float) -> tuple[float, float, int]:
    """Return low and high of an axis that shows ``clip`` percent, and how many are out of view.

    What is to be seen lies between ``lows`` and ``highs``, finite, float64 of shape ``[n]``. Nothing is out of view
    unless the others would be flattened.
    """
    low = np.percentile(lows, (100 - clip) / 2, method="higher")
    high = np.percentile(highs, (100 + clip) / 2, method="lower")
    if clip < 100 and highs.max() - lows.min() > _MAKES_A_DIFFERENCE * (high - low) > 0:
        return float(low), float(high), int(((lows < low) | (highs > high)).sum())
    return float(lows.min()), float(highs.max()), 0


def draw_curves(
    axes: "Axes", curves: Sequence[tuple[Look, Sequence[Scalars]]], smooth: int | None, clip: float, log: bool
) -> None:
    """Draw scalar series: points in a thin line, means around them in a thick one; of several, quantiles."""
    all_series = [series for _, several in curves for series in several]
    every = np.concatenate([series.values for series in all_series])
    finite = every[np.isfinite(every)]
    if not finite.size:
        say(axes, f"all {len(every):,} values are NaN or infinite")
    for look, several in curves:
        steps, values = several[0].steps, several[0].values
        if len(several) > 1:
            steps, values = _draw_many(axes, look, several)
        points = smooth or (len(steps) // 50 if len(steps) >= _SMOOTH_FROM else 1)
        if points > 1 and len(several) == 1:
            axes.plot(*thinned(steps, values), color=look.color, linewidth=0.6, alpha=0.3)
            steps, values = smoothed(steps, values, points)
        dots = {"marker": "o", "markersize": 3} if len(steps) <= _DOTS_UP_TO else {}
        axes.plot(*thinned(steps, values), color=look.color, linestyle=look.line, linewidth=1.4, **dots)
    broken = np.concatenate([series.steps[~np.isfinite(series.values)] for series in all_series])
    if broken.size:
        _mark(axes, np.unique(broken), f"{len(broken):,} NaN or inf from step {broken.min()}")
    shown = finite[finite > 0] if log else finite
    if not shown.size:
        if finite.size:
            _remark(axes, "not logarithmic: nothing is above zero")
        return
    scaled = np.log10(shown) if log else shown
    low, high, hidden = view_of(scaled, scaled, clip)
    if log:
        axes.set_yscale("log", nonpositive="mask")
    if hidden:
        margin = 0.05 * (high - low)
        axes.set_ylim(*(10.0 ** np.array([low - margin, high + margin]) if log else (low - margin, high + margin)))
        _remark(axes, f"{hidden:,} points out of view (--clip)")
    if len(shown) < len(finite):
        _remark(axes, f"{len(finite) - len(shown):,} not positive")


def _draw_many(axes: "Axes", look: Look, several: Sequence[Scalars]) -> tuple[np.ndarray, np.ndarray]:
    """Draw bands between quantiles over series, and return their median."""
    steps = np.unique(np.concatenate([series.steps for series in several]))
    table = np.full((len(several), len(steps)), np.nan)
    for row, series in zip(table, several, strict=True):
        row[np.searchsorted(steps, series.steps)] = np.where(np.isfinite(series.values), series.values, np.nan)
    for low, high, alpha in _OF_MANY:
        axes.fill_between(
            steps, *np.nanquantile(table, [low, high], axis=0), color=look.color, alpha=alpha, linewidth=0
        )
    return steps, np.nanmedian(table, axis=0)


class HistogramView(NamedTuple):
    """The steps, rows of values (rising edges) and hidden windows that all panels of a series have in common."""

    begin: float
    end: float
    edges: np.ndarray
    hidden: int
    is_whole: bool


def view_histograms(several: Sequence[Histograms], clip: float) -> HistogramView | None:
    """Return what the panels of histogram series have in common; None if there is no finite value."""
    used = [one for series in several for one in series.values if one.count]
    if not used:
        return None
    lows, highs = (np.array([one.quantile(q) for one in used]) for q in (0.002, 0.998))
    low, high, hidden = view_of(lows, highs, clip)
    is_whole = all(map(_is_whole, used))
    if is_whole:
        low, high = np.floor(low), np.floor(high)
        width = -(-(high - low + 1) // _ROWS)
        edges = np.arange(low, high + width + 1, width) - 0.5
    else:
        margin = 0.02 * (high - low) or max(0.5, abs(high) * 1e-6)  # values that lie at one end have a width then
        edges = np.linspace(low - margin, high + margin, _ROWS + 1)
    begin = min(_borders(series.steps)[0] for series in several)
    return HistogramView(begin, max(float(series.steps[-1]) for series in several), edges, hidden, is_whole)


def draw_bands(axes: "Axes", series: Histograms, look: Look, view: HistogramView) -> None:
    """Draw quantiles of a histogram series over time: bands of 98, 90 and 50 percent of its values, and the median."""
    fractions = [q for low, high, _ in _BANDS for q in (low, high)]
    lines = series.quantiles([*fractions, 0.5])
    lines = np.insert(np.floor(lines) if view.is_whole else lines, 0, 0.0, axis=1)
    lines[:, 0] = lines[:, 1]
    steps, half = _borders(series.steps), 0.5 * view.is_whole  # whole numbers are as high as in the heat map
    for index, (_, _, alpha) in enumerate(_BANDS):
        lower, upper = lines[2 * index : 2 * index + 2] + half * np.array([[-1.0], [1.0]])
        axes.fill_between(steps, lower, upper, step="pre", color=look.color, alpha=alpha, linewidth=0)
    axes.plot(steps, lines[-1], drawstyle="steps-pre", color=look.color, linestyle=look.line, linewidth=1.2)


def draw_heat_map(axes: "Axes", series: Histograms, view: HistogramView) -> None:
    """Draw where the values of a histogram series lie over time: a column is one histogram, or the mean of several."""
    columns = np.array([_fractions(one, view) for one in series.values])
    borders = _borders(series.steps)
    if len(columns) > _COLUMNS:
        parts = np.array_split(np.arange(len(columns)), _COLUMNS)
        columns = np.array([np.nanmean(columns[part], axis=0) for part in parts])
        borders = borders[[0, *(part[-1] + 1 for part in parts)]]
    # The root, because a histogram has few bins that are full and many that hold little.
    image = np.ma.masked_invalid(np.sqrt(columns.T))
    filled = image.compressed()[image.compressed() > 0]
    fullest = np.quantile(filled, 0.98) if filled.size else 1.0
    axes.pcolormesh(borders, view.edges, image, cmap="Blues", vmin=0, vmax=fullest, shading="flat", rasterized=True)


def finish_histograms(axes: "Axes", several: Sequence[Histograms], view: HistogramView | None) -> None:
    """Give a panel of histogram series its limits, and mark the windows that hold NaN or infinities."""
    if view is None:
        say(axes, f"no finite value in {sum(len(series.steps) for series in several):,} windows")
    else:
        axes.set_xlim(view.begin, view.end)
        axes.set_ylim(view.edges[0], view.edges[-1])
        if view.is_whole:
            axes.locator_params("y", integer=True)
        if view.hidden:
            _remark(axes, f"{view.hidden:,} windows out of view (--clip)")
    windows = [(step, one) for series in several for step, one in zip(series.steps, series.values, strict=True)]
    broken = {int(step): one for step, one in windows if _broken(one)}
    if broken:
        elements = sum(_broken(one) for _, one in windows)
        _mark(axes, np.array(sorted(broken)), f"{elements:,} NaN or inf from step {min(broken)}")


def merged(several: Sequence[Histograms]) -> Histograms:
    """Return histogram series as one that holds the values of all, bins of different edges spread evenly."""
    by_step: dict[int, list[Histogram]] = {}
    for series in several:
        for step, one in zip(series.steps.tolist(), series.values, strict=True):
            by_step.setdefault(step, []).append(one)
    steps = sorted(by_step)
    first = several[0]
    return Histograms(
        first.name, first.context, np.array(steps), [_sum(by_step[step]) for step in steps], np.full(len(steps), np.nan)
    )


def say(axes: "Axes", words: str) -> None:
    """Write words in the middle of a panel."""
    axes.text(
        0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", fontsize=8, color=_RED, parse_math=False
    )


def _sum(histograms: list[Histogram]) -> Histogram:
    used = [one for one in histograms if one.count] or histograms[:1]
    edges = np.unique(np.concatenate([one.edges for one in used]))
    below = sum(np.interp(edges, one.edges, np.concatenate(([0], np.cumsum(one.counts)))) for one in used)
    return Histogram(
        edges=edges,
        counts=np.diff(np.rint(below)).astype(np.int64),
        min=min(one.min for one in used),
        max=max(one.max for one in used),
        **{key: sum(getattr(one, key) for one in histograms) for key in _SUMS},
    )


_SUMS = ("sum", "sum_squares", "zeros", "nan", "posinf", "neginf")


def _fractions(one: Histogram, view: HistogramView) -> np.ndarray:
    """Return which part of a histogram's values lies in each row; NaN if it has no finite value."""
    if not one.count:
        return np.full(len(view.edges) - 1, np.nan)
    if view.is_whole:  # the bin of a whole number begins there
        below = np.interp(view.edges + 0.5, one.edges, np.concatenate(([0], np.cumsum(one.counts))))
    else:
        below = one.cumulative_at(view.edges)
    return np.diff(below) / one.count


def _is_whole(one: Histogram) -> bool:
    numbers = np.array([one.min, one.max, one.sum, *one.edges])
    return bool((numbers == np.floor(numbers)).all())


def _borders(steps: np.ndarray) -> np.ndarray:
    """Return where windows begin and end; the first is taken to be as long as most, but not to begin before step 0."""
    width = float(np.median(np.diff(steps))) if len(steps) > 1 else 1.0
    begin = steps[0] - width if steps[0] <= 0 else max(steps[0] - width, 0.0)
    return np.insert(steps.astype(float), 0, begin)


def _broken(one: Histogram) -> int:
    return one.nan + one.posinf + one.neginf


def _mark(axes: "Axes", steps: np.ndarray, words: str) -> None:
    """Put a red mark at the upper edge of each step, and words beside them."""
    few, at_the_edge = steps[:: max(1, len(steps) // _COLUMNS)], axes.get_xaxis_transform()
    axes.plot(few, np.ones(len(few)), "v", color=_RED, markersize=4, transform=at_the_edge, clip_on=False, zorder=5)
    if len(steps) <= 3:
        for step in steps:
            axes.axvline(step, color=_RED, linestyle=":", linewidth=0.8)
    axes.text(
        0.01, 0.97, words, transform=axes.transAxes, ha="left", va="top", fontsize=7, color=_RED, parse_math=False,
        bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1},
    )  # fmt: skip


def _remark(axes: "Axes", words: str) -> None:
    said = axes.get_xlabel()
    axes.set_xlabel(f"{said}, {words}" if said else f"step; {words}", fontsize=8)
