"""W&B's transaction log, the file ``run-<id>.wandb``: which steps it holds, and how to cut it.

It is a LevelDB log (https://github.com/google/leveldb/blob/main/doc/log_format.md) of protocol buffers, behind a header
of seven bytes.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_PROTOCOL: Any = wandb_internal_pb2  # made at run time, where type checkers do not see it
_BLOCK = 32768
_HEADER = 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class LogFile:
    """Reads a transaction log, also while W&B writes it."""

    def __init__(self, path: Path):
        self._path = path
        self._end = _HEADER

    def new_steps(self) -> Iterator[tuple[int, int]]:
        """Yield what was appended since the last call: each history row's step, and where its record begins."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            parts: list[bytes] = []
            begin = position = self._end
            while True:
                if _BLOCK - position % _BLOCK < _HEADER:
                    position += _BLOCK - position % _BLOCK
                file.seek(position)
                header = file.read(_HEADER)
                if len(header) < _HEADER:
                    return
                _, length, kind = struct.unpack("<IHB", header)
                part = file.read(length)
                if kind not in (_FULL, _FIRST, _MIDDLE, _LAST) or len(part) < length:
                    return
                if kind in (_FULL, _FIRST):
                    begin, parts = position, []
                parts.append(part)
                position += _HEADER + length
                if kind in (_FULL, _LAST):
                    self._end = position
                    record = _PROTOCOL.Record.FromString(b"".join(parts))
                    if record.HasField("history"):
                        yield record.history.step.num, begin

    def cut_from(self, step: int) -> bool:
        """Remove the rows of ``step`` and later ones, and what was written behind them; return whether there was any.

        The file is replaced and not shortened: a killed run's helper process may still be writing to it.
        """
        for found, begin in self.new_steps():
            if found >= step:
                draft = self._path.with_suffix(".cut")
                with self._path.open("rb") as file, draft.open("wb") as kept:
                    kept.write(file.read(begin))
                    kept.flush()
                    os.fsync(kept.fileno())
                draft.rename(self._path)
                return True
        return False

    def sync(self) -> None:
        """Wait until what W&B has written to the file is on disk."""
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
