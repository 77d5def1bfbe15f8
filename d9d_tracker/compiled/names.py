"""Names that cost graphs: a warning that says where, and what to do."""

import logging
from collections import defaultdict

from d9d_tracker.tracing import compilation, user_line

logger = logging.getLogger("d9d_tracker")

_MOST_GRAPHS = 4

_graphs: dict[str, dict[str, str]] = defaultdict(dict)  # by line of code: the first name that each graph logs there


def warn_of_names(name: str) -> None:
    """Warn, while tracing, when a line has cost its fourth graph because it logged under yet another name."""
    graph, line = compilation(), user_line()
    if graph is None or line is None:
        return
    first_names = _graphs[line]
    if graph in first_names:
        return
    is_new = name not in first_names.values()
    first_names[graph] = name
    names = dict.fromkeys(first_names.values())
    if is_new and len(names) == _MOST_GRAPHS:
        logger.warning(
            "%s was compiled %d times because it logs under another name each time (%s): give each module a handle, "
            "made once by run.scalar_series(name) or run.bins_series(name), and log to that",
            line,
            _MOST_GRAPHS,
            ", ".join(repr(name) for name in names),
        )
