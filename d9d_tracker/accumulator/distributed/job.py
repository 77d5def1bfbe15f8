"""The ranks that share a run: who they are, what they must agree on, and how they are connected."""

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from d9d_tracker.base import BaseTracker, BaseTrackerRun, RunConfig
from d9d_tracker.config import AccumulatorConfig
from d9d_tracker.errors import TrackerValueError

from . import tree
from .link import FrameReader, FrameSender, accept, call, listen, own_addresses
from .node import Node
from .rank_set import rank_set, spell

_LOOPBACK = "127.0.0.1"
_SEND_BYTES = 256 * 2**20


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


@dataclass
class _Host:
    name: str
    addresses: list[str]
    port: int


class Job:
    """This process among the ranks of a torch.distributed job.

    Its collectives run on the host, on a gloo group of its own, when a run is opened and never after.

    Args:
        group: Makes the process group; called once, by ``open``.
        rank: This process's rank in the group.
        size: Number of ranks.
        timeout: Seconds that anything here waits for other ranks, at most.
    """

    def __init__(self, group: Callable[[], Any], rank: int, size: int, timeout: float):
        self.rank = rank
        self.size = size
        self._world = dist.group.WORLD
        self._make_group = group
        self._group: Any = None
        self._timeout = timeout

    @classmethod
    def of(cls, config: AccumulatorConfig) -> "Job | None":
        """Find this process's place, as configured.

        Args:
            config: Says which ranks share a run. A factory in it is called here.

        Returns:
            The job; None if this process has a run of its own.

        Raises:
            TrackerValueError: If the factory's group is not a gloo group with this process in it.
        """
        if config.distributed == "off" or not (dist.is_available() and dist.is_initialized()):
            return None
        timeout = config.distributed_timeout
        if config.distributed == "auto":
            rank, size = dist.get_rank(), dist.get_world_size()

            def make_group() -> Any:
                return dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))

        else:
            group = config.distributed()
            rank, size = dist.get_rank(group), dist.get_world_size(group)
            if rank < 0 or "gloo" not in dist.get_backend(group):
                raise TrackerValueError(
                    f"accumulator.distributed gave {group!r}, which is not a gloo group with rank {dist.get_rank()} in "
                    "it; return one made by torch.distributed.new_group(backend='gloo')"
                )

            def make_group() -> Any:
                return group

        return cls(make_group, rank, size, timeout) if size > 1 else None

    @property
    def is_stale(self) -> bool:
        """Whether torch.distributed was shut down since."""
        return not dist.is_initialized() or dist.group.WORLD is not self._world

    def agree(self, settings: dict[str, Any]) -> None:
        """Refuse, on all ranks alike, settings that differ between ranks. Every rank must call it.

        Args:
            settings: Names and values that must be equal.

        Raises:
            TrackerValueError: If they differ, or some ranks did not call in time.
        """
        everyone = self._gather(settings)
        for name in settings:
            values: dict[Any, list[int]] = {}
            for rank, theirs in enumerate(everyone):
                values.setdefault(theirs[name], []).append(rank)
            if len(values) > 1:
                words = "; ".join(f"{value!r} on {spell(rank_set(ranks))}" for value, ranks in values.items())
                raise TrackerValueError(f"open: {name} differs between ranks: {words}. Make it the same on all ranks")

    def connect(self) -> Node:
        """Connect the ranks to a tree. Every rank must call it.

        Raises:
            TrackerValueError: If some ranks cannot reach each other; raised on all ranks alike.
        """
        # Half the time, so that whoever gives up can still tell the others.
        deadline = time.monotonic() + self._timeout / 2
        below = tree.children(self.rank, self.size)
        node, error = None, None
        names = self._gather(socket.gethostname())
        server = listen(_LOOPBACK if len(set(names)) == 1 else "") if below else None
        port = server.getsockname()[1] if server is not None else 0
        here = _Host(names[self.rank], own_addresses(os.environ.get("MASTER_ADDR")), port)
        told = self._gather((here, secrets.token_bytes(32)))
        secret: bytes = told[0][1]
        try:
            sender = None
            if self.rank > 0:
                above = tree.parent(self.rank)
                there: _Host = told[above][0]
                addresses = [_LOOPBACK] if there.name == here.name else []
                connection = call([*addresses, *there.addresses], there.port, secret, self.rank, deadline)
                sender = FrameSender(connection, _SEND_BYTES, f"rank {above}")
            connections = accept(server, secret, below, deadline) if server is not None else {}
            readers = {rank: FrameReader(connection) for rank, connection in connections.items()}
            node = Node(self.rank, self.size, sender, readers, self._timeout)
        except OSError as failure:
            error = f"rank {self.rank}: {failure or type(failure).__name__}"
        finally:
            if server is not None:
                server.close()
        errors = [error for error in self._gather(error) if error is not None]
        if errors or node is None:
            if node is not None:
                node.close()
            raise TrackerValueError(f"open: the ranks cannot reach each other: {'; '.join(errors)}")
        return node

    @contextmanager
    def open(self, tracker: BaseTracker[Any], properties: RunConfig) -> Iterator[BaseTrackerRun | None]:
        """Open the backend on rank 0. Every rank must call it.

        Args:
            tracker: The backend's tracker; on every rank it knows the run afterwards.
            properties: Name, description and hyperparameters of the run.

        Yields:
            The backend's run on rank 0, None on the others.
        """
        with ExitStack() as stack:
            backend: list[BaseTrackerRun] = []

            def open_here() -> str | None:
                if self.rank > 0:
                    return None
                backend.append(stack.enter_context(tracker.open(properties)))
                return tracker.run_id

            run_id = self.on_all_ranks(open_here)[0]
            if self.rank > 0:
                tracker.run_id, tracker.resume_id = run_id, None
            yield backend[0] if backend else None

    def on_all_ranks(self, action: Callable[[], Any]) -> list[Any]:
        """Do something that must succeed on every rank. Every rank must call it.

        Args:
            action: What to do here; no collective.

        Returns:
            What it returned on each rank.

        Raises:
            TrackerValueError: If it failed on another rank. Where it failed, its own exception is raised.
        """
        result, failure = None, None
        try:
            result = action()
        except BaseException as error:
            failure = error
        everyone = self._gather((result, None if failure is None else repr(failure)))
        if failure is not None:
            raise failure
        for rank, (_, error) in enumerate(everyone):
            if error is not None:
                raise TrackerValueError(f"open: rank {rank} could not open the run: {error}")
        return [result for result, _ in everyone]

    def _gather(self, value: Any) -> list[Any]:
        gathered: list[Any] = [None] * self.size
        self._collect(lambda group: dist.all_gather_object(gathered, value, group=group))
        return gathered

    def _collect(self, collective: Callable[[Any], None]) -> None:
        try:
            if self._group is None:
                self._group = self._make_group()
            collective(self._group)
        except RuntimeError as error:
            self._group = None  # gloo closes a group that was waited for in vain
            raise TrackerValueError(
                f"open: not all {self.size} ranks opened the run within accumulator.distributed_timeout="
                f"{self._timeout:g} s ({error}); call open on every rank, or set accumulator.distributed to 'off'"
            ) from error
