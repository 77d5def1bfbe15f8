"""Kernels of d9d_tracker: the bottom layer, which knows torch and triton only.

Importing it registers the operators `d9d_tracker::histogram_`, `histogram_many_`, `add_counts_` and `merge_scalars_`.
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
from d9d_tracker_kernels.lanes import COUNT, INITIAL, LANES, LAST, MAX, NEGATED_MIN, SUM, WEIGHT
from d9d_tracker_kernels.ops import SUPPORTED_DTYPES, add_counts_, check_values, dense_move, histogram_, histogram_many_
from d9d_tracker_kernels.scalars import merge_scalars_

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
    "dense_move",
    "histogram_",
    "histogram_many_",
    "merge_scalars_",
    "sorted_cells",
    "validate",
]
