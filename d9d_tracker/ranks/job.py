"""The ranks that share a run: who they are, and what they must agree on when a run is opened."""

import logging
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from d9d_tracker.config import AccumulatorConfig
from d9d_tracker.errors import TrackerValueError

from .exchange import exchange
from .ranks import Ranks
from .spelling import spell

logger = logging.getLogger("d9d_tracker")


def warn_of_a_job_unknown(config: AccumulatorConfig) -> None:
    """Warn, in a process that has a run of its own, if it looks like one of several that wanted to share one.

    Args:
        config: Says which ranks share a run.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if config.distributed == "auto" and size != "1" and not (dist.is_available() and dist.is_initialized()):
        logger.warning(
            "open: WORLD_SIZE is %s but torch.distributed is not initialised, so every process has a run of its own; "
            "call init_process_group first, or set accumulator.distributed to 'off'",
            size,
        )


def is_silenced(config: AccumulatorConfig) -> bool:
    """Return whether what this process logs goes nowhere, because rank 0 alone is to log and this is another.

    Args:
        config: Says which ranks share a run.
    """
    if config.distributed != "rank0":
        return False
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else int(os.environ.get("RANK", "0"))
    return rank > 0


class Job:
    """This process among the ranks of a torch.distributed job.

    Its collectives run on the host, on a gloo group of its own: here when a run is opened, and in ``Ranks``.

    Args:
        make_group: Makes the process group; called by ``open``, and again after ranks were lost.
        rank: This process's rank in the group.
        size: Number of ranks.
        timeout: Seconds that anything here waits for other ranks, at most.
    """

    def __init__(self, make_group: Callable[[], Any], rank: int, size: int, timeout: float):
        self.rank = rank
        self.size = size
        self._world = dist.group.WORLD
        self._make_group = make_group
        self._ranks: Ranks | None = None
        self._group: Any = None
        self._timeout = timeout

    @classmethod
    def of(cls, config: AccumulatorConfig, group: Callable[[], Any] | None = None) -> "Job | None":
        """Find this process's place, as configured.

        Args:
            config: Says which ranks share a run.
            group: Returns their process group; called here. By default, a group of all ranks is made.

        Returns:
            The job; None if this process has a run of its own.

        Raises:
            TrackerValueError: If the group is not a gloo group with this process in it.
        """
        if config.distributed != "auto" or not (dist.is_available() and dist.is_initialized()):
            return None
        timeout = config.distributed_timeout
        if group is None:

            def make_group() -> Any:
                return dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))

            rank, size = dist.get_rank(), dist.get_world_size()
        else:
            given = group()
            rank, size = dist.get_rank(given), dist.get_world_size(given)
            if rank < 0 or "gloo" not in dist.get_backend(given):
                raise TrackerValueError(
                    f"the tracker's group is {given!r}, which is not a gloo group with rank {dist.get_rank()} in it; "
                    "return one made by torch.distributed.new_group(backend='gloo')"
                )

            def make_group() -> Any:
                return given

        return cls(make_group, rank, size, timeout) if size > 1 else None

    @property
    def is_stale(self) -> bool:
        """Whether torch.distributed was shut down since."""
        return not dist.is_initialized() or dist.group.WORLD is not self._world

    def agree(self, settings: dict[str, Any]) -> None:
        """Refuse, on all ranks alike, settings that differ between ranks. Every rank must call it.

        Args:
            settings: Names and plain JSON values that must be equal.

        Raises:
            TrackerValueError: If they differ, or some ranks did not call in time.
        """
        everyone = self._exchange(settings)
        for name in settings:
            values: dict[Any, list[int]] = {}
            for rank, theirs in enumerate(everyone):
                values.setdefault(theirs[name], []).append(rank)
            if len(values) > 1:
                words = "; ".join(f"{value!r} on {spell(ranks)}" for value, ranks in values.items())
                raise TrackerValueError(f"open: {name} differs between ranks: {words}. Make it the same on all ranks")

    def on_all_ranks(self, action: Callable[[], Any]) -> list[Any]:
        """Do something that must succeed on every rank. Every rank must call it.

        Args:
            action: What to do here; no collective.

        Returns:
            What it returned on each rank, plain JSON values.

        Raises:
            TrackerValueError: If it failed on another rank. Where it failed, its own exception is raised.
        """
        result, failure = None, None
        try:
            result = action()
        except BaseException as error:
            failure = error
        everyone = self._exchange({"result": result, "error": None if failure is None else repr(failure)})
        if failure is not None:
            raise failure
        for rank, theirs in enumerate(everyone):
            if theirs["error"] is not None:
                raise TrackerValueError(f"open: rank {rank} could not open the run: {theirs['error']}")
        return [theirs["result"] for theirs in everyone]

    def connect(self) -> Ranks:
        """Return the ranks, for the run that all of them have opened."""
        self._ranks = Ranks(self._group)
        return self._ranks

    def _exchange(self, value: Any) -> list[Any]:
        if self._ranks is not None and self._ranks.is_lost:
            self._group = self._ranks = None  # gloo closes a group in which a rank was waited for in vain
        try:
            if self._group is None:
                self._group = self._make_group()
            return exchange(value, self._group)
        except RuntimeError as error:
            self._group = None
            raise TrackerValueError(
                f"open: not all {self.size} ranks opened the run within accumulator.distributed_timeout="
                f"{self._timeout:g} s ({error}); call open on every rank, or set accumulator.distributed to 'off'"
            ) from error
