"""Histogram kernels of d9d_tracker: the bottom layer, which knows torch and triton only.

Importing it registers the operators `d9d_tracker::histogram_` and `d9d_tracker::histogram_many_`.
"""

from d9d_tracker_kernels.bank import HistogramState, allocate
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
from d9d_tracker_kernels.ops import SUPPORTED_DTYPES, add_counts_, check_values, dense_move, histogram_, histogram_many_

__all__ = [
    "CALLS",
    "CELLS",
    "EXPONENTIAL",
    "HEADER",
    "INTEGER",
    "LAST_STEP",
    "LINEAR",
    "MOMENTS",
    "NAN",
    "NEGINF",
    "POSINF",
    "SUPPORTED_DTYPES",
    "ZEROS",
    "HistogramState",
    "Moment",
    "SortedCells",
    "add_counts_",
    "allocate",
    "cell_edges",
    "check_values",
    "dense_move",
    "histogram_",
    "histogram_many_",
    "sorted_cells",
    "validate",
]
