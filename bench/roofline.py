"""The picture of a roofline: bytes against time, and the limit that nothing gets below."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Point(NamedTuple):
    """What one measurement says.

    Attributes:
        label: What was measured; points of one label are joined.
        nbytes: Size of the input in bytes.
        milliseconds: Time it took.
    """

    label: str
    nbytes: int
    milliseconds: float


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

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for label in dict.fromkeys(point.label for point in points):
        own = [(point.nbytes, point.milliseconds) for point in points if point.label == label]
        axes.loglog(*zip(*own, strict=True), marker="o", label=label)
    ends = [min(point.nbytes for point in points), max(point.nbytes for point in points)]
    axes.loglog(ends, [nbytes / bandwidth for nbytes in ends], "k--", label=limit)
    axes.set_xlabel("bytes of the tensor")
    axes.set_ylabel("ms, median")
    axes.set_title(title, loc="left")
    axes.legend()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    print(f"wrote {out}")
