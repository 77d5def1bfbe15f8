"""Kernels of d9d_tracker: the bottom layer, which knows NumPy, torch and triton only.

Asking it for anything that works on tensors imports torch and registers the operators `d9d_tracker::histogram_`,
`histogram_many_`, `add_counts_` and `merge_scalars_`; how a row of counts is laid out can be known without.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from d9d_tracker_kernels.binning import (
    CALLS,
    CELLS,
    EXPONENTIAL,
    HEADER,
    INTEGER,
    LAST_STEP,
    LINEAR,
    MOMENTS,
    NAN,
    NEGINF,
    POSINF,
    ZEROS,
    Moment,
    SortedCells,
    cell_edges,
    sorted_cells,
    validate,
)
from d9d_tracker_kernels.lanes import COUNT, INITIAL, LANES, LAST, MAX, NEGATED_MIN, SUM, WEIGHT

if TYPE_CHECKING:
    from d9d_tracker_kernels.bank import HistogramState, allocate
    from d9d_tracker_kernels.ops import (
        SUPPORTED_DTYPES,
        add_counts_,
        check_values,
        histogram_,
        histogram_many_,
        why_not_counted,
    )
    from d9d_tracker_kernels.scalars import merge_scalars_

_OF_TENSORS = ("bank", "ops", "scalars")

__all__ = [
    "CALLS",
    "CELLS",
    "COUNT",
    "EXPONENTIAL",
    "HEADER",
    "INITIAL",
    "INTEGER",
    "LANES",
    "LAST",
    "LAST_STEP",
    "LINEAR",
    "MAX",
    "MOMENTS",
    "NAN",
    "NEGATED_MIN",
    "NEGINF",
    "POSINF",
    "SUM",
    "SUPPORTED_DTYPES",
    "WEIGHT",
    "ZEROS",
    "HistogramState",
    "Moment",
    "SortedCells",
    "add_counts_",
    "allocate",
    "cell_edges",
    "check_values",
    "histogram_",
    "histogram_many_",
    "merge_scalars_",
    "sorted_cells",
    "validate",
    "why_not_counted",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in [import_module(f"{__name__}.{part}") for part in _OF_TENSORS]:
            if hasattr(module, name):
                return globals().setdefault(name, getattr(module, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
