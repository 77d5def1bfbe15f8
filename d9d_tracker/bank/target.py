"""Where a call writes, decided once: the same for code that runs as it is written, is captured, or is compiled."""

from typing import NamedTuple

import torch


class Target(NamedTuple):
    """Where the values of a call go. A handle is one that was made once.

    Attributes:
        at: A place in the table for each value.
        table: Which slot each place means, int64 on the device. In eager code it is one in which place k is slot k, so
            that a GPU runs the same kernels as when the step is captured.
        is_handle: Whether the table is a handle's.
    """

    at: list[int]
    table: torch.Tensor
    is_handle: bool = False
