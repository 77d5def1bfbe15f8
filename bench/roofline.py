"""The picture of a roofline: bytes against time, and the limit that nothing gets below."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .style import COLOURS, STYLE

_OURS = ("#e8590c", "#f59f00", "#a61e4d", "#5f3dc4", "#e64980", "#f08c00", "#862e9c", "#364fc7")


class Point(NamedTuple):
    """What one measurement says.

    Attributes:
        label: What was measured; points of one label are joined.
        nbytes: Size of the input in bytes.
        milliseconds: Time it took.
        is_ours: Whether it is a histogram of this package.
    """

    label: str
    nbytes: int
    milliseconds: float
    is_ours: bool = True


def draw_roofline(points: Sequence[Point], bandwidth: float, limit: str, title: str, out: Path) -> None:
    """Draw points and the limit, and say where.

    Args:
        points: What was measured.
        bandwidth: Bytes per millisecond that memory gives at most.
        limit: What that is, in words.
        title: What the picture shows and where it was measured.
        out: The PNG file; its folder is created.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = itertools.cycle(_OURS)
    sizes = sorted({point.nbytes for point in points})
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 5))
        for label in dict.fromkeys(point.label for point in points):
            own = [point for point in points if point.label == label]
            axes.loglog(
                [point.nbytes for point in own],
                [point.milliseconds for point in own],
                marker="o",
                linewidth=2 if own[0].is_ours else 1.5,
                color=next(colours) if own[0].is_ours else COLOURS["package"],
                label=label,
            )
        floor = [nbytes / bandwidth for nbytes in sizes]
        axes.loglog(sizes, floor, color=COLOURS["baseline"], linestyle=":", linewidth=1.5, label=limit)
        axes.fill_between(sizes, min(floor) / 2, floor, color=COLOURS["by hand"], alpha=0.35, linewidth=0)
        axes.set_ylim(bottom=min(floor) / 2)
        axes.set_xticks(sizes, [_readable(nbytes) for nbytes in sizes], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_xlabel("bytes of the tensor (log scale)")
        axes.set_ylabel("ms, median (log scale)")
        axes.set_title(title)
        axes.legend(frameon=False, fontsize=9)
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, facecolor="white")
        plt.close(figure)
    print(f"wrote {out}")


def _readable(nbytes: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if nbytes >= size:
            return f"{nbytes / size:g} {unit}"
    return f"{nbytes / 2**10:g} KiB"
