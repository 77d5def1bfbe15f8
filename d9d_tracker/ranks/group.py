"""Collectives of some ranks, on a gloo group that nobody else has: not in torch's list, and never the training's."""

import ctypes
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from .native_calls import native_call

_CONNECT_SECONDS = 30.0
_FIRST_PAUSE_SECONDS = 2e-4
_LONGEST_PAUSE_SECONDS = 0.1


class Group:
    """A gloo group. Its collectives are waited for in glances, so that a wait can be given up at any time.

    A thread that is inside of gloo, or one of gloo's that is the last to let go of a tensor, aborts the process if the
    interpreter ends meanwhile. So none waits there, the last collectives are kept until the group is closed, which ends
    gloo's threads, and what is given up in the middle is never freed.

    Only its ranks meet in ``store``, all of them now. ``look`` is called while others are waited for, and ends the wait
    by raising; gloo itself gives up after ``timeout`` seconds. A rank that is gone, or does not come, is a
    ``RuntimeError``.
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: float, look: Callable[[], None]):
        self.rank = rank
        self.size = size
        self._look = look
        self._recent: deque[tuple[dist.Work, Any]] = deque(maxlen=4)
        # Nobody can look up from connecting: if a rank dies just now, that must be over before a closing run gives up.
        connect = min(_CONNECT_SECONDS, timeout / 16)
        with native_call():
            self._gloo: Any = dist.ProcessGroupGloo(store, rank, size, timedelta(seconds=connect))
        self._gloo.set_timeout(timedelta(seconds=timeout))

    def all_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return the tensors of all ranks, which are of one shape and dtype."""
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        self._finish(lambda: self._gloo.allgather([parts], [tensor]), tensor, parts)
        return parts

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """Return the bytes of all ranks, in any number each."""
        sizes = [int(size) for size in self.all_gather(torch.tensor([len(data)], device="cpu"))]
        parts = self.all_gather(as_tensor(data, max(1, *sizes)))
        return [part.numpy().tobytes()[:size] for part, size in zip(parts, sizes, strict=True)]

    def all_reduce_max(self, tensor: torch.Tensor) -> None:
        """Make a tensor the largest of all ranks, in place."""
        self._finish(lambda: self._gloo.allreduce([tensor], dist.ReduceOp(dist.ReduceOp.MAX)), tensor)

    def reduce_sum(self, tensor: torch.Tensor) -> None:
        """Make a tensor the sum of all ranks on the first of them, in place; on the others, of no use."""
        self._finish(lambda: self._gloo.reduce(tensor, 0, dist.ReduceOp(dist.ReduceOp.SUM)), tensor)

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return, on the first rank, the tensors of all ranks, which are of one shape and dtype; nothing elsewhere."""
        options = dist.GatherOptions()
        options.rootRank = 0
        parts = [torch.empty_like(tensor) for _ in range(self.size)] if self.rank == 0 else []
        self._finish(lambda: self._gloo.gather([parts] if parts else [], [tensor], options), tensor, parts)
        return parts

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Make a tensor that of the first rank, in place."""
        self._finish(lambda: self._gloo.broadcast(tensor, 0), tensor)

    def close(self) -> None:
        """End gloo's threads; at once, since nothing is on its way any more, or what is was given up."""
        self._gloo = None
        self._recent.clear()

    def _finish(self, begin: Callable[[], dist.Work], *tensors: Any) -> None:
        with native_call():
            work = begin()
        self._recent.append((work, tensors))
        gloo = self._gloo
        pause = _FIRST_PAUSE_SECONDS
        try:
            while not work.is_completed():
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                self._look()
        except BaseException:
            for kept in (gloo, work, tensors):
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
            raise
        with native_call():
            work.wait()


def as_tensor(data: bytes, length: int) -> torch.Tensor:
    """Return bytes as uint8 of shape ``[length]``, with zeros behind them."""
    return torch.from_numpy(np.frombuffer(data.ljust(length, b"\0"), dtype=np.uint8).copy())
