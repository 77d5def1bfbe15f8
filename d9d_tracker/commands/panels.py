"""The panels of a plot: curves of scalars; quantile bands and heat maps of histograms over time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from d9d_tracker.reading import Histograms, Scalars

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#2a6fb0", "#d1603d", "#3a9a6b", "#8a5fb8", "#c2932b", "#4fa7b5", "#b84f7d", "#6b6b6b")
_BANDS = ((0.01, 0.99, 0.15), (0.05, 0.95, 0.25), (0.25, 0.75, 0.4))
_ROWS = 120
_COLUMNS = 400
_MOST_POINTS = 20_000


def draw_curves(axes: "Axes", curves: Sequence[tuple[str, Scalars]], smooth: int, clip: float) -> None:
    """Draw scalar series: every point in a thin line, and their running mean in a thick one.

    Args:
        axes: Where to draw.
        curves: Labels and series.
        smooth: Number of points in the running mean; 1 for none.
        clip: Percentage of the points that the axis shows, the outermost left out on both sides alike.
    """
    shown = [np.empty(0)]
    for index, (label, series) in enumerate(curves):
        color = COLORS[index % len(COLORS)]
        steps, values = thinned(series.steps, series.values)
        if smooth > 1 and len(series.steps) > smooth:
            axes.plot(steps, values, color=color, linewidth=0.6, alpha=0.3)
            steps, values = thinned(series.steps, running_mean(series.values, smooth))
        axes.plot(steps, values, color=color, linewidth=1.4, label=label, marker="o" if len(steps) == 1 else None)
        broken = ~np.isfinite(series.values)
        if broken.any():
            first = int(series.steps[broken][0])
            axes.axvline(first, color=color, linestyle=":", linewidth=1.2, label=f"not finite from step {first}")
        shown.append(series.values[~broken])
    finite = np.concatenate(shown)
    if finite.size and clip < 100:
        low, high = np.percentile(finite, [(100 - clip) / 2, (100 + clip) / 2])
        # Only where it makes a difference: a curve should not lose its ends to a rule.
        if finite.max() - finite.min() > 2 * (high - low) > 0:
            axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
            axes.text(
                0.99, 0.98, f"{clip:g}% of the points in view", transform=axes.transAxes, ha="right", va="top",
                fontsize=7, color="0.4",
            )  # fmt: skip


def draw_bands(axes: "Axes", series: Histograms, color: str, label: str) -> None:
    """Draw quantiles of a histogram series over time: bands of 98, 90 and 50 percent of its values, and the median.

    Args:
        axes: Where to draw.
        series: The series.
        color: Color of the bands.
        label: What the legend calls it.
    """
    for low, high, alpha in _BANDS:
        lower, upper = series.quantiles([low, high])
        axes.fill_between(series.steps, lower, upper, color=color, alpha=alpha, linewidth=0)
    axes.plot(series.steps, series.quantiles([0.5])[0], color=color, linewidth=1.2, label=label)


def draw_heat_map(axes: "Axes", series: Histograms) -> None:
    """Draw where the values of a histogram series lie over time, the darker the more of them.

    Each column is one histogram, or the mean of several, and ends at the step that it was logged for.

    Args:
        axes: Where to draw.
        series: The series.
    """
    used = [(step, one) for step, one in zip(series.steps.tolist(), series.values, strict=True) if one.count]
    if not used:
        return
    low = min(one.quantile(0.002) for _, one in used)
    high = max(one.quantile(0.998) for _, one in used)
    margin = 0.02 * (high - low) or 0.5  # values that all lie at one end of the range have a width then
    edges = np.linspace(low - margin, high + margin, _ROWS + 1)
    columns = np.array([np.diff(one.cumulative_at(edges)) / one.count for _, one in used])
    steps = np.array([step for step, _ in used], dtype=float)
    if len(steps) > _COLUMNS:
        parts = np.array_split(np.arange(len(steps)), _COLUMNS)
        columns = np.array([columns[part].mean(axis=0) for part in parts])
        steps = np.array([steps[part[-1]] for part in parts])
    width = np.median(np.diff(steps)) if len(steps) > 1 else 1.0
    borders = np.insert(steps, 0, steps[0] - width)
    # The root, because a histogram has few bins that are full and many that hold little.
    image = np.sqrt(columns.T)
    fullest = np.quantile(image[image > 0], 0.98)
    axes.pcolormesh(borders, edges, image, cmap="Blues", vmin=0, vmax=fullest, shading="flat", rasterized=True)


def running_mean(values: np.ndarray, points: int) -> np.ndarray:
    """Return means of each value and those before it; what is not finite is left out of them.

    Args:
        values: float64 of shape ``[n]``.
        points: How many values a mean is taken of; at the beginning, fewer.

    Returns:
        float64 of shape ``[n]``; NaN where there is no finite value.
    """
    finite = np.isfinite(values)
    sums, counts = (np.cumsum(part, dtype=np.float64) for part in (np.where(finite, values, 0.0), finite))
    sums[points:], counts[points:] = sums[points:] - sums[:-points], counts[points:] - counts[:-points]
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return at most some ten thousand points that look like all of them: the extremes of stretches.

    Args:
        steps: Rising, of shape ``[n]``.
        values: Of the same shape.
    """
    if len(values) <= _MOST_POINTS:
        return steps, values
    width = -(-len(values) // (_MOST_POINTS // 2))
    whole = len(values) // width * width
    stretches = values[:whole].reshape(-1, width)
    begins = np.arange(0, whole, width)
    low = begins + np.where(np.isnan(stretches), np.inf, stretches).argmin(axis=1)
    high = begins + np.where(np.isnan(stretches), -np.inf, stretches).argmax(axis=1)
    kept = np.unique(np.concatenate((low, high, np.arange(whole, len(values)))))
    return steps[kept], values[kept]
