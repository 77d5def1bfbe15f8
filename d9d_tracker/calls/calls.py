"""What is common to everything a run logs: whether it is logged at all, and under which context."""

from typing import Any, Literal

import torch

from d9d_tracker.bank.buffers import Buffers
from d9d_tracker.bank.places import Target
from d9d_tracker.base import BaseTrackerRun
from d9d_tracker.compiled.recompute import check_place, check_traced_place, is_refused_place
from d9d_tracker.compiled.runs import RunKey
from d9d_tracker.compiled.slots import say_closed
from d9d_tracker.config import AccumulatorConfig
from d9d_tracker.context import ContextItems, Contexts, as_context, as_items
from d9d_tracker.errors import TrackerValueError, fail
from d9d_tracker.tracing import forget_own_guards, is_in_backward, is_producing_a_program, is_recomputed
from d9d_tracker.windows.promises import Promises
from d9d_tracker_kernels.device import gpu

Scope = Literal["global", "rank", "spread"]

WHAT_A_HANDLE_LOGS = "what a handle logs"


class Calls(BaseTrackerRun):
    """The state that a call hangs on.

    Args:
        buffers: The device state.
        config: How to accumulate.

    Attributes:
        is_open: Whether it takes values.
        traced: The state of the scalars, the table of the places, and constants, for code that is traced.
        key: What code that is traced has in place of the run.
        kind: What another run has in common that such code may be run for.
        stepping_thread: Identity of the thread that called ``set_step`` last in this run, if any did.
        buffers: The device state.
        config: How to accumulate.
        promises: What the watches of this run have promised.
    """

    def __init__(self, buffers: Buffers, config: AccumulatorConfig):
        self.is_open = False
        self.stepping_thread: int | None = None
        self.buffers = buffers
        self.config = config
        self.promises = Promises()
        self._contexts = Contexts()
        self._tags: dict[str, str] = {}  # of `context` blocks in compiled and captured code
        self._rank = "0"
        self.key = (RunKey(self),)
        sizes = config.max_scalars, config.max_histograms
        self.kind = repr((buffers.device, buffers.is_plain, sizes, config.binning, config.bins_every))
        parts = (buffers.scalars.current, buffers.places.table, buffers.scalars.constants)
        self.traced = parts if buffers.scalars.host is not None and not buffers.is_plain else None

    def holds_places(self) -> bool:
        """Whether what is called now will run again without Python, under a context that is not known yet."""
        if torch.compiler.is_compiling():
            return True
        return self.buffers.is_gpu and gpu.is_current_stream_capturing()

    def _is_silent(self, what: str) -> bool:
        """Whether nothing is to be logged: the run is closed, or a program is made that others will run."""
        if is_producing_a_program():
            return True
        if torch.compiler.is_compiling():
            forget_own_guards(self.kind)
        if not self.is_open:
            say_closed(self.key, what)
        return not self.is_open

    def _is_repeated(self, name: str) -> bool:
        if torch.compiler.is_compiling():
            check_traced_place(name)
            return False
        check_place(name)
        return is_recomputed()

    def _is_refused(self, handle: Any) -> bool:
        """Whether what a handle logs is logged again. Under trace, its name is read only to refuse it."""
        if not torch.compiler.is_compiling():
            return self._is_repeated(handle.name)
        if is_refused_place():
            check_traced_place(handle.name)
        return False

    def _items(self, name: str, context: dict[str, str] | None, scope: Scope, handle: bool = False) -> ContextItems:
        """The context of a call, without that of the run or a block where a place is held: that is data there."""
        held = self.holds_places()
        tags = self._tags if held else {}
        around = () if handle or held else self._current_context()
        if context is None and scope in ("global", "spread") and not tags:
            return around
        merged = {**dict(around), **tags}
        if context is not None:
            merged.update(as_context(name, context))
        if scope == "rank":
            merged["rank"] = self._rank
        elif scope not in ("global", "spread"):
            fail(TrackerValueError, f"series {name!r}: scope={scope!r} is neither 'global', 'rank' nor 'spread'")
        return as_items(merged)

    def _current_context(self) -> ContextItems:
        """The context that holds here; in a backward on a thread of autograd's own, that of the training's thread."""
        if self._contexts.of_block() is None and is_in_backward():
            return self.buffers.places.context
        return self._contexts.get()

    def _target(self, handle: Any, slots: torch.Tensor) -> Target:
        """Where a handle writes; in eager code to its slot here, if any, by the table in which place k is slot k."""
        if self.holds_places():
            return handle.target
        places, context = self.buffers.places, self._current_context()
        slot = handle.entry.slot if context == places.context else places.slot(handle.series, context)
        return Target([slot] if slot >= 0 else [], slots)

    def _refuse_inside_graphs(self, method: str) -> None:
        if torch.compiler.is_compiling():
            fail(TrackerValueError, f"{method} was called inside compiled code; call it on the host, between steps")
        if self.buffers.is_gpu and gpu.is_current_stream_capturing():
            raise TrackerValueError(
                f"{method} was called while a CUDA graph is captured, which would not repeat it on replay; call it "
                "between replays"
            )
