"""One picture of runs in JSON files: curves, quantile bands and heat maps, runs side by side."""

import itertools
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from d9d_tracker.reading import Histograms, Scalars, read

from . import panels
from .labels import in_words, labels_of, shortened, shortened_apart, together, unmatched
from .norm_panels import common_view, family_of, surface

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

T = TypeVar("T", Scalars, Histograms)
_Loaded = list[list[Scalars | Histograms]]  # of each run
_Found = list[tuple[str, list[T]]]  # by what the legend calls them
_Looks = defaultdict[str, panels.Look]
_Views = dict[str, tuple[float, float] | None]
_PANEL_INCHES = (4.6, 2.7)
_COLUMNS = 3
_TITLE, _LABEL = 58, 48  # characters
_INSIDE = 4, 26  # labels, and characters of the longest, for which a legend fits into a panel
_TOLD_APART = 8  # contexts of a run; of more that differ in a number, such as the rank, quantiles are drawn
_MOST_LOOKS = len(panels.COLORS) * len(panels.LINES)
_MOST_HEAT_MAPS = 8
_UNITS = {"time": "s", "memory": "B"}  # of the instrument panel; not of what counts or names a rank
_WITHOUT_UNIT = ("/retries", "/max_rank")


@dataclass
class Panel:
    """A part of the picture."""

    title: str
    draw: "Callable[[Axes], None]"
    labels: list[str]
    begins_row: bool = False


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
    """Draw runs into a picture, whose ending says its format; return what was left out and why, a line each."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("`plot` draws with matplotlib: pip install 'd9d_tracker[plot]'") from error
    from .fonts import families

    remarks: list[str] = []
    runs, loaded, known = [], [], []
    for run in (run for path in paths for run in read(path)):
        try:
            own = run.load(*patterns)
            known += [series.name for series in run.series()] if patterns else []
        except ValueError as error:  # a damaged file
            remarks.append(f"left out: {error}")
            continue
        runs.append(run)
        loaded.append([one for series in own if len((one := _within(series, steps)).steps)])
    remarks += unmatched(patterns, known)
    scalars, histograms = _names(loaded, Scalars), _names(loaded, Histograms)
    if not scalars and not histograms:
        raise ValueError("; ".join(remarks) or "no points" + (" of these steps" if steps else ""))
    left_out = [*scalars, *histograms][most:]
    if left_out:
        remarks.append(f"left out {len(left_out)} series, from {left_out[0]!r} on: choose by --series, or raise --max")
    labels = labels_of(runs)
    # One look for each label in all panels.
    all_looks = (panels.Look(color, line) for line in panels.LINES for color in panels.COLORS)
    looks: _Looks = defaultdict(itertools.cycle(all_looks).__next__)
    shown = scalars[:most]
    views = {family: common_view(_all_of(loaded, family)) for family in map(family_of, shown) if family}
    parts = [
        *_surfaces(loaded, labels, shown),
        *(_curves(name, _of(loaded, labels, name, Scalars), looks, smooth, clip, log, views) for name in shown),
    ]
    for name in histograms[: max(0, most - len(scalars))]:
        parts += _histograms(name, _of(loaded, labels, name, Histograms), looks, clip, remarks)
    with rc_context({"font.family": families(), "text.usetex": False}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matplotlib and NumPy warn of is said in the picture
        figure = Figure(layout="constrained")
        title = ", ".join(dict.fromkeys(run.name for run in runs))
        remarks += _arrange(figure, parts, looks, title)
        remarks += _save(figure, out)
    return remarks


def _within(series: Scalars | Histograms, steps: tuple[int, int] | None) -> Scalars | Histograms:
    if steps is None:
        return series
    kept = slice(*np.searchsorted(series.steps, (steps[0], steps[1] + 1)))  # they rise
    return replace(series, steps=series.steps[kept], values=series.values[kept], times=series.times[kept])


def _names(loaded: _Loaded, kind: type) -> list[str]:
    """Return the names as first logged, but the norms of a family beside each other, behind that of the whole."""
    families = {one.name: family_of(one.name) or one.name for own in loaded for one in own if isinstance(one, kind)}
    places = {family: place for place, family in enumerate(dict.fromkeys(families.values()))}
    return sorted(families, key=lambda name: (places[families[name]], name != families[name]))


def _of(loaded: _Loaded, labels: list[str], name: str, kind: type[T]) -> _Found[T]:
    """Return the series of a name in all runs, with what the legend calls them; those of many ranks as one."""
    found: _Found[T] = []
    for label, own in zip(labels, loaded, strict=True):
        series = [one for one in own if isinstance(one, kind) and one.name == name]
        tags = dict.fromkeys(tag for one in series for tag in one.context)
        differing = [tag for tag in tags if len({one.context.get(tag) for one in series}) > 1]
        is_ranked = len(differing) == 1 and all(one.context.get(differing[0], "").isdigit() for one in series)
        if len(series) > (_TOLD_APART if is_ranked else _MOST_LOOKS):
            common = {tag: value for tag, value in series[0].context.items() if tag not in differing}
            words = f"{', '.join(differing)}: all {len(series)}"
            found.append((together(label, in_words(common), words), series))
        else:
            found += [(together(label, in_words(one.context)), [one]) for one in series]
    return found


def _curves(
    name: str, found: _Found[Scalars], looks: _Looks, smooth: int | None, clip: float, log: bool, views: _Views
) -> Panel:
    from matplotlib.ticker import EngFormatter

    curves, family = [(looks[label], series) for label, series in found], family_of(name)

    def draw(axes: "Axes") -> None:
        panels.draw_curves(axes, curves, smooth, clip, log or family is not None)
        if family is not None and (view := views[family]) is not None:  # one for all of the family
            axes.set_yscale("log", nonpositive="mask")
            axes.set_ylim(*view)
        if (unit := _UNITS.get(name.partition("/")[0])) and not name.endswith(_WITHOUT_UNIT):
            axes.yaxis.set_major_formatter(EngFormatter(unit))

    return Panel(name, draw, [label for label, _ in found])


def _all_of(loaded: _Loaded, family: str) -> list[Scalars]:
    """Return the norms of a family in all runs."""
    return [one for own in loaded for one in own if isinstance(one, Scalars) and family_of(one.name) == family]


def _surfaces(loaded: _Loaded, labels: list[str], shown: list[str]) -> list[Panel]:
    """Return a panel for each run and family of norms, of all that were chosen, drawn as curves or not."""
    parts = []
    for family in dict.fromkeys(filter(None, map(family_of, shown))):
        for label, own in zip(labels, loaded, strict=True):
            series = _all_of([own], family)
            if len(series) > 1:
                parts.append(Panel(together(f"{family}, layer by step", label), partial(surface, family, series), []))
    return parts


def _histograms(name: str, found: _Found[Histograms], looks: _Looks, clip: float, remarks: list[str]) -> list[Panel]:
    """Return the panels of a histogram series: its quantiles, and a heat map of each run, on axes that are the same."""
    labels = [label for label, _ in found]
    all_series = [several[0] if len(several) == 1 else panels.merged(several) for _, several in found]
    all_looks = [looks[label] for label in labels]
    view = panels.view_histograms(all_series, clip)

    def bands(axes: "Axes") -> None:
        if view is not None:
            for series, look in zip(all_series, all_looks, strict=True):
                panels.draw_bands(axes, series, look, view)
        panels.finish_histograms(axes, all_series, view)

    def heat_map(series: Histograms, axes: "Axes") -> None:
        if view is not None:
            panels.draw_heat_map(axes, series, view)
        panels.finish_histograms(axes, [series], view)

    if len(found) > _MOST_HEAT_MAPS:
        remarks.append(f"left out {len(found) - _MOST_HEAT_MAPS} heat maps of {name!r}: its bands are drawn")
    first = Panel(f"{shortened(name, _TITLE)}: median, 50, 90 and 98%", bands, labels, begins_row=True)
    shown = list(zip(labels, all_series, strict=True))[:_MOST_HEAT_MAPS]
    return [first, *(Panel(together(name, label), partial(heat_map, series), []) for label, series in shown)]


def _arrange(figure: "Figure", parts: list[Panel], looks: _Looks, title: str) -> list[str]:
    """Draw the panels in rows; return what could not be drawn."""
    from .fonts import drawable

    rows: list[list[Panel]] = []
    for panel in parts:
        if not rows or panel.begins_row or len(rows[-1]) == _COLUMNS:
            rows.append([])
        rows[-1].append(panel)
    columns = max(map(len, rows))
    short = {label: drawable(words) for label, words in shortened_apart(looks, _LABEL).items()}
    fits = len(short) <= _INSIDE[0] and max(map(len, short.values())) <= _INSIDE[1]
    width = columns * _PANEL_INCHES[0]
    per_row = max(1, int(width / (0.06 * max(map(len, short.values())) + 0.6)))
    legend_inches = 0.0 if fits else 0.16 * -(-len(short) // per_row) + 0.2
    figure.set_size_inches(width, len(rows) * _PANEL_INCHES[1] + 0.4 + legend_inches)
    figure.suptitle(drawable(shortened(title, 30 * columns)), x=0.01, ha="left", fontweight="bold", parse_math=False)
    failed = []
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for row, all_axes in zip(rows, grid, strict=True):
        for panel, axes in itertools.zip_longest(row, all_axes):
            if panel is None:
                axes.set_visible(False)
                continue
            try:
                panel.draw(axes)
            except Exception as error:  # one series must not spoil the picture
                failed.append(_clear(axes, panel.title, error))
            _finish(axes, drawable(panel.title))
            shown = [label for label in dict.fromkeys(panel.labels) if label]
            if fits and shown:
                _add_legend(axes, shown, looks, short)
    if not fits:
        _add_legend(figure, list(looks), looks, short, loc="outside lower left", ncols=per_row)
    return failed


def _add_legend(owner: Any, labels: list[str], looks: _Looks, short: dict[str, str], **where: Any) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=looks[label].color, linestyle=looks[label].line) for label in labels]
    words = [f" {short[label]}" for label in labels]  # matplotlib leaves out what begins with an underscore
    for text in owner.legend(handles, words, fontsize=7, frameon=False, **where).get_texts():
        text.set_parse_math(False)


def _finish(axes: "Axes", title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    title = shortened(title, 2 * _TITLE)
    lines = [title] if len(title) <= _TITLE else [title[:_TITLE], title[_TITLE:]]
    axes.set_title("\n".join(lines), fontsize=9, loc="left", parse_math=False)
    axes.set_xlabel(axes.get_xlabel() or "step", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    axes.tick_params(which="both", labelsize=7)
    axes.grid(visible=True, color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _save(figure: "Figure", out: Path) -> list[str]:
    """Write the picture; return what turned out not to be drawable."""
    form = out.suffix[1:].lower() or "png"
    known = figure.canvas.get_supported_filetypes()
    if form not in known:
        raise ValueError(f"--out {out}: no format {form!r}; there are {', '.join(sorted(known))}")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(out, dpi=130, format=form)
    except OSError:
        raise
    except Exception:
        failed = [words for axes in figure.axes if (words := _replaced(axes, figure))]
        figure.savefig(out, dpi=130, format=form)
        return failed
    return []


def _replaced(axes: "Axes", figure: "Figure") -> str | None:
    """Put words in the place of a panel if it cannot be drawn, and return why."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    try:
        axes.draw(FigureCanvasAgg(figure).get_renderer())
    except Exception as error:
        title = axes.get_title("left")
        words = _clear(axes, title, error)
        axes.set_title(title, fontsize=9, loc="left", parse_math=False)
        return words
    return None


def _clear(axes: "Axes", title: str, error: Exception) -> str:
    axes.clear()
    panels.say(axes, "could not be drawn")
    return f"{title!r} could not be drawn: {type(error).__name__}: {error}"
