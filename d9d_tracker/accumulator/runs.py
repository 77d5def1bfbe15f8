"""The runs of this process by token: what code that may be traced is given in place of a run."""

import os
from typing import Protocol
from weakref import WeakValueDictionary

from d9d_tracker.config import AccumulatorConfig

from .buffers import Buffers


class Run(Protocol):
    """What the rooms below a run need of it."""

    is_open: bool
    buffers: Buffers
    config: AccumulatorConfig
    stepping_thread: int | None


runs: WeakValueDictionary[str, Run] = WeakValueDictionary()


def _close_in_child() -> None:
    for run in runs.values():
        run.is_open = False


# A forked process, a data loader's worker for example, has none of the threads that take what is logged.
os.register_at_fork(after_in_child=_close_in_child)
