"""The runs of this process by token: what code that may be traced is given in place of a run."""

import os
from collections.abc import Mapping
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch

from d9d_tracker.base import BinsHandle
from d9d_tracker.config import AccumulatorConfig

from .buffers import Buffers


class Run(Protocol):
    """What the rooms below a run need of it."""

    is_open: bool
    buffers: Buffers
    config: AccumulatorConfig
    watches: list[Any]

    def bins_series(self, name: str, *, binning: Any = None, every: int | None = None) -> BinsHandle:
        """See ``AccumulatingRun``."""
        ...

    def bins_many(self, values: Mapping[str, torch.Tensor], *, binning: Any = None, every: int | None = None) -> None:
        """See ``AccumulatingRun``."""


runs: WeakValueDictionary[str, Run] = WeakValueDictionary()


def _close_in_child() -> None:
    for run in runs.values():
        run.is_open = False


# A forked process, a data loader's worker for example, has none of the threads that take what is logged.
os.register_at_fork(after_in_child=_close_in_child)
