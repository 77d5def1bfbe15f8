"""The runs of this process as code that is traced knows them: by a key, on which it has a guard."""

import itertools
import os
from typing import Protocol
from weakref import WeakValueDictionary, ref

from d9d_tracker.bank.buffers import Buffers
from d9d_tracker.config import AccumulatorConfig
from d9d_tracker.tracing import allow_as_constant

_tokens = itertools.count()


class Run(Protocol):
    """What the rooms below a run need of it."""

    is_open: bool
    buffers: Buffers
    config: AccumulatorConfig
    stepping_thread: int | None


runs: "WeakValueDictionary[str, Run]" = WeakValueDictionary()  # whom an operator that has a token logs to


class RunKey:
    """What traced code has in place of a run: equal to that of a run that is closed, whose code then logs here.

    So the code of one trial serves the next, which has a tracker of its own. A guard asks whether they are equal, and
    then what the code logs to is given slots in the open run: before it runs, and only if it does.

    Args:
        run: The run, which is not kept alive.

    Attributes:
        token: What operators are given that find the run when they run.
    """

    def __init__(self, run: Run):
        self.token = f"run {next(_tokens)}"
        self._run = ref(run)
        self._claimed = run.buffers.places.claimed

    @property
    def run(self) -> Run:
        """The run, while code is traced for it."""
        run = self._run()
        assert run is not None  # it is among what is traced
        return run

    def opened(self) -> None:
        """Have operators that were traced for this run log to it again."""
        runs[self.token] = self.run

    def __hash__(self) -> int:
        return hash(RunKey)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, RunKey):
            return NotImplemented
        open_runs = [(run, key) for key in (self, other) if (run := key._run()) is not None and run.is_open]
        if len(open_runs) == 1:
            run, key = open_runs[0]
            closed = other if key is self else self
            if runs.get(closed.token) is not run:
                runs[closed.token] = run
            run.buffers.places.adopt(closed.token, closed._claimed)
        return len(open_runs) < 2


allow_as_constant(RunKey)
# As it is given to functions whose results are constants: alone, it would be guarded by its identity.
Key = tuple[RunKey]


def _close_in_child() -> None:
    for run in runs.values():
        run.is_open = False


# A forked process, a data loader's worker for example, has none of the threads that take what is logged.
os.register_at_fork(after_in_child=_close_in_child)
