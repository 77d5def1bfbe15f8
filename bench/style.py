"""What all plots look like. Needs nothing but Python: some benchmarks run where little is installed."""

from typing import Any

COLOURS = {"ours": "#e8590c", "package": "#7b8794", "by hand": "#b8c1cc", "baseline": "#3e4c59"}
INK, FAINT = "#1f2933", "#e4e7eb"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "savefig.dpi": 150,
    "figure.constrained_layout.use": True,
}
