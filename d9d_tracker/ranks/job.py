"""The ranks that share a run: who they are, and what they must agree on when a run is opened."""

import hashlib
import os
import secrets
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from d9d_tracker.config import AccumulatorConfig
from d9d_tracker.errors import TrackerValueError
from d9d_tracker.log import logger

from .board import Board, BoardLostError, wait
from .lead import Lead
from .member import Member
from .ranks import Ranks
from .ranks_in_words import spell

_SAY_SECONDS = 10.0


def warn_of_a_job_unknown(config: AccumulatorConfig) -> None:
    """Warn, in a process that has a run of its own, if it looks like one of several that wanted to share one."""
    size = os.environ.get("WORLD_SIZE", "1")
    if config.distributed == "auto" and size != "1" and not (dist.is_available() and dist.is_initialized()):
        logger.warning(
            "open: WORLD_SIZE is %s but torch.distributed is not initialised, so every process has a run of its own; "
            "call init_process_group first, or set accumulator.distributed to 'off'",
            size,
        )


def is_silenced(config: AccumulatorConfig) -> bool:
    """Return whether what this process logs goes nowhere, because rank 0 alone is to log and this is another."""
    if config.distributed != "rank0":
        return False
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else int(os.environ.get("RANK", "0"))
    return rank > 0


class Job:
    """This process among the ranks of a torch.distributed job that share runs.

    Opening a run goes over a board in the job's store, see ``Ranks``: rank 0 writes a number, drawn anew each time, and
    every rank says under it what it has configured; rank 0, which opens the backend meanwhile, answers. So what ranks
    left in the store that are dead, in an earlier life of the job, answers no question. No collective is issued, and no
    group of the training's is used.

    The process is the ``rank``-th of ``ranks``, and waits ``timeout`` seconds for the others, at most.
    """

    def __init__(self, ranks: list[int], rank: int, store: Any, timeout: float):
        self.rank = rank
        self.size = len(ranks)
        self._world = dist.group.WORLD
        self._timeout = timeout
        self._origin = store  # which lives as long as somebody has it, on the host of a TCP store
        digest = hashlib.blake2b(repr(ranks).encode(), digest_size=8).hexdigest()
        self._board = Board(store.clone(), f"d9d_tracker/{digest}")
        self._number = ""  # of the run that was opened last

    @classmethod
    def of(cls, config: AccumulatorConfig, group: Callable[[], Any] | None = None) -> "Job | None":
        """Find this process in a group, of any backend, or in the job; None if it has a run of its own."""
        if config.distributed != "auto" or not (dist.is_available() and dist.is_initialized()):
            return None
        given = dist.group.WORLD if group is None else group()
        rank = -1 if given is None else dist.get_rank(given)
        if rank < 0:
            raise TrackerValueError(
                f"the tracker's group is {given!r}, and rank {dist.get_rank()} is not in it; return a group that has "
                "this rank as a member"
            )
        ranks = dist.get_process_group_ranks(given)
        world: Any = dist.group.WORLD
        return cls(ranks, rank, world.get_group_store(), config.distributed_timeout) if len(ranks) > 1 else None

    @property
    def is_stale(self) -> bool:
        """Whether torch.distributed was shut down since."""
        return not dist.is_initialized() or dist.group.WORLD is not self._world

    def open(self, settings: dict[str, Any], action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Open a run on all ranks alike, or on none; every rank must call it. All is plain JSON values.

        Returns, on all ranks, what ``action`` does on rank 0. A ``TrackerValueError`` says that settings differ, some
        ranks did not call in time, or the action failed on rank 0, where its own exception is raised.
        """
        try:
            return self._lead(settings, action) if self.rank == 0 else self._follow(settings)
        except BoardLostError as error:
            raise TrackerValueError(f"open: other ranks are gone, and the job's store with them: {error}") from error

    def connect(self) -> Ranks:
        """Return the ranks, for the run that all of them have opened."""
        kind = Lead if self.rank == 0 else Member
        return kind(Board(self._board.store, self._number), self.rank, self.size, self._timeout)

    def _lead(self, settings: dict[str, Any], action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        number = self._number = secrets.token_hex(8)
        everyone = {0: settings}
        missing = set(range(1, self.size))

        def all_have_called() -> bool:
            calls = {rank: self._board.get(f"call/{number}/{rank}") for rank in missing}
            everyone.update({rank: call for rank, call in calls.items() if call is not None})
            missing.difference_update(everyone)
            return not missing

        answer: dict[str, Any] = {"error": None}
        failure: BaseException | None = None
        self._board.put("open", number)
        try:
            self._wait(all_have_called, lambda: spell(missing))
            _refuse_differing(everyone)
            answer["opened"] = action()
        except TrackerValueError as error:
            failure, answer["error"] = error, str(error)
        except BaseException as error:
            failure, answer["error"] = error, f"open: rank 0 could not open the run: {error!r}"
        self._board.put("open", None)  # before the answer: who has that calls under no old number again
        self._board.put(f"answer/{number}", answer)
        for rank in range(1, self.size):
            self._board.delete(f"call/{number}/{rank}")
        if failure is not None:
            raise failure
        return answer["opened"]

    def _follow(self, settings: dict[str, Any]) -> dict[str, Any]:
        number, answer = "", None

        def is_answered() -> bool:
            nonlocal number, answer
            answer = self._board.get(f"answer/{number}") if number else None
            newest = self._board.get("open") if answer is None else None
            if newest not in (None, number):
                number = newest
                self._board.put(f"call/{number}/{self.rank}", settings)
            return answer is not None

        try:
            self._wait(is_answered, lambda: "rank 0, which waits for all")
        except BaseException:
            self._board.put(f"call/{number}/{self.rank}", None)
            raise
        assert answer is not None
        self._number = number
        if answer["error"] is not None:
            raise TrackerValueError(answer["error"])
        return answer["opened"]

    def _wait(self, is_done: Callable[[], bool], whom: Callable[[], str]) -> None:
        began, says_at = time.monotonic(), _SAY_SECONDS

        def look() -> None:
            nonlocal says_at
            waited = time.monotonic() - began
            if waited > self._timeout:
                raise TrackerValueError(
                    f"open: not all {self.size} ranks opened the run within accumulator.distributed_timeout="
                    f"{self._timeout:g} s (waited for {whom()}); call open on every rank, or set "
                    "accumulator.distributed to 'off'"
                )
            if waited > says_at:
                says_at *= 4
                logger.warning("open: waiting for %s to open the run, for %.0f s so far", whom(), waited)

        wait(is_done, look, self.size)


def _refuse_differing(everyone: dict[int, dict[str, Any]]) -> None:
    for name in everyone[0]:
        values: dict[Any, list[int]] = {}
        for rank, theirs in sorted(everyone.items()):
            values.setdefault(theirs[name], []).append(rank)
        if len(values) > 1:
            words = "; ".join(f"{value!r} on {spell(ranks)}" for value, ranks in values.items())
            raise TrackerValueError(f"open: {name} differs between ranks: {words}. Make it the same on all ranks")
