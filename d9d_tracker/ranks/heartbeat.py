"""Who is still alive: every rank leaves a sign of life in the job's store, so that a lost one can be named."""

import contextlib
import threading
from typing import Any

_LEAST_PERIOD_SECONDS = 1.0
_MOST_SIGNS_PER_SECOND = 500
_LEFT = "left"


class Heartbeat:
    """Leaves a sign of life every second; less often in a large job, so that the store has little to do.

    Args:
        store: The store of a process group.
        rank: This rank.
        size: Number of ranks.
    """

    def __init__(self, store: Any, rank: int, size: int):
        self._store = store
        self._rank = rank
        self._size = size
        self._period = max(_LEAST_PERIOD_SECONDS, size / _MOST_SIGNS_PER_SECOND)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="d9d_tracker heartbeat", daemon=True)
        self._thread.start()

    def silent(self) -> list[int]:
        """Return the ranks without a sign of life for two and a half periods from now; none if the store is gone."""
        try:
            before = self._signs()
            self._stopped.wait(2.5 * self._period)
            after = self._signs()
        except Exception:  # whoever had the store is gone
            return []
        return [
            rank for rank in range(self._size) if before[rank] == after[rank] != _LEFT.encode() and rank != self._rank
        ]

    def stop(self) -> None:
        """Leave the last sign: that this rank has left the run."""
        self._stopped.set()
        self._thread.join(_LEAST_PERIOD_SECONDS)
        with contextlib.suppress(Exception):  # the store is gone, and with it anybody who would read the sign
            self._store.set(self._key(self._rank), _LEFT)

    def _signs(self) -> list[bytes | None]:
        keys = [self._key(rank) for rank in range(self._size)]
        return [self._store.get(key) if self._store.check([key]) else None for key in keys]

    def _key(self, rank: int) -> str:
        return f"d9d_tracker/alive/{rank}"

    def _beat(self) -> None:
        sign = 0
        try:
            while True:
                self._store.set(self._key(self._rank), str(sign))
                sign += 1
                if self._stopped.wait(self._period):
                    return
        except Exception:  # the store is gone, and with it anybody who would read the signs
            return
