"""Norms of a model in a picture: a surface, layer by step, and small multiples on one logarithmic axis."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from d9d_tracker.reading import Scalars

from .panels import say

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A color map for each norm, of the color that its name brings to mind in no other.
_MAPS = {"gradients": "Blues", "parameters": "Greens", "updates": "Oranges", "ratios": "Purples"}
_NORM = re.compile(rf"((?:.*/)?norms/({'|'.join(_MAPS)}))/(.+)")
_MOST_COLUMNS = 400
_MOST_NAMES = 24


def family_of(name: str) -> str | None:
    """Return which norms a series is one of, ``norms/gradients`` for example; None if it is no norm of a part."""
    found = _NORM.fullmatch(name)
    return found[1] if found else None


def common_view(series: Iterable[Scalars]) -> tuple[float, float] | None:
    """Return the limits of a logarithmic axis that shows all series; None if nothing is positive."""
    values = np.concatenate([one.values for one in series] or [np.zeros(0)])
    shown = values[np.isfinite(values) & (values > 0)]
    if not shown.size:
        return None
    low, high = np.log10(shown.min()), np.log10(shown.max())
    margin = max(0.05 * (high - low), 0.02)
    return float(10 ** (low - margin)), float(10 ** (high + margin))


def surface(family: str, series: Sequence[Scalars], axes: "Axes") -> None:
    """Draw the norms of a family in one run: a row for each part, in the order of the model."""
    from matplotlib.colors import LogNorm

    view = common_view(series)
    if view is None:
        say(axes, "nothing is above zero")
        return
    names = [one.name.removeprefix(f"{family}/") for one in series]
    edges, table = _table(series)
    with np.errstate(invalid="ignore"):
        table = np.where(table > 0, table, np.nan)
    colors = _MAPS[family.rpartition("/")[2]]
    mesh = axes.pcolormesh(edges, np.arange(len(series) + 1), table, cmap=colors, norm=LogNorm(*view))
    axes.figure.colorbar(mesh, ax=axes).ax.tick_params(which="both", labelsize=7)
    every = -(-len(names) // _MOST_NAMES)
    axes.set_yticks(np.arange(0, len(names), every) + 0.5, names[::every], fontsize=6, parse_math=False)
    axes.invert_yaxis()


def _table(series: Sequence[Scalars]) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges of columns, and the largest value of each series in each; NaN where there is none."""
    steps = np.unique(np.concatenate([one.steps for one in series]))
    columns = min(_MOST_COLUMNS, len(steps))
    firsts = steps[np.arange(columns) * len(steps) // columns].astype(np.float64)
    last = float(steps[-1]) + max(1.0, float(steps[-1] - firsts[0]) / max(1, columns - 1) if columns > 1 else 1.0)
    table = np.full((len(series), columns), -np.inf)
    for row, one in enumerate(series):
        columns_of = np.searchsorted(firsts, one.steps, side="right") - 1
        values = np.where(np.isfinite(one.values), one.values, -np.inf)
        np.maximum.at(table[row], columns_of, values)
    return np.append(firsts, last), np.where(np.isfinite(table), table, np.nan)
