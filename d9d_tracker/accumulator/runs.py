"""The runs of this process by token: what code that may be traced is given in place of a run."""

import os
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from .run import AccumulatingRun

runs: WeakValueDictionary[str, "AccumulatingRun"] = WeakValueDictionary()


def _close_in_child() -> None:
    for run in runs.values():
        run.is_open = False


# A forked process, a data loader's worker for example, has none of the threads that take what is logged.
os.register_at_fork(after_in_child=_close_in_child)
