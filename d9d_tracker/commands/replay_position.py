"""How far the replay of a run has come."""

import hashlib
import json
import os
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import BaseModel

from d9d_tracker.config import TrackerConfig
from d9d_tracker.provider.jsonl_format import record_line
from d9d_tracker.reading import End, StoredRun
from d9d_tracker.record import Record


class Mark(NamedTuple):
    """The first step behind what was sent, how many points that was, and their digest."""

    step: int
    points: int
    digest: str


_START = Mark(0, 0, "")


class Position(BaseModel):
    """What a destination was sent of a run, in a file beside that of the run; each destination has one."""

    state: dict[str, Any] | None = None  # of the destination's tracker, once its run was opened
    opening: bool = False  # whether the destination's run was about to be opened when this was noted last
    marks: list[Mark] = []  # what the destination holds, a mark for each part
    sending: Mark | None = None  # what it may hold besides
    hparams: dict[str, Any] = {}
    end: End | None = None
    _path: Path

    @classmethod
    def of(cls, run: StoredRun, config: TrackerConfig) -> Self:
        """Read what was noted of a run and a destination, if anything was."""
        text = config.model_dump_json(exclude={"accumulator"})
        digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        path = run.path.with_name(f"{run.path.stem}.{getattr(config, 'provider', 'backend')}-{digest}.replay")
        position = cls.model_validate(json.loads(path.read_text()) if path.exists() else {})
        position._path = path
        return position

    @property
    def last(self) -> Mark:
        """Up to where the destination holds all for sure."""
        return self.marks[-1] if self.marks else _START

    def forget_changed(self, records: Sequence[Record]) -> bool:
        """Drop marks behind which a point has changed since; return whether the destination may hold other values."""
        told = [*self.marks, *([self.sending] if self.sending else [])]
        steps, good = [record.step for record in records], 0
        for before, mark in pairwise([_START, *told]):
            digest = _digest(before.digest, records[before.points : mark.points])
            if bisect_left(steps, mark.step) != mark.points or digest != mark.digest:
                break
            good += 1
        del self.marks[good:]
        self.sending = None
        return good < len(told)

    def begin(self, part: Sequence[Record]) -> None:
        """Note, durably, what is sent next: a kill may come when the destination has it and before that is noted."""
        before = self.last
        self.sending = Mark(part[-1].step + 1, before.points + len(part), _digest(before.digest, part))
        self.save()

    def move(self) -> None:
        """Note, durably, that the destination holds what was sent last."""
        assert self.sending is not None
        self.marks.append(self.sending)
        self.sending = None
        self.save()

    def save(self) -> None:
        """Write the file anew, or not at all."""
        draft = self._path.with_suffix(".draft")
        with draft.open("w") as file:
            json.dump(self.model_dump(), file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)


def _digest(before: str, records: Sequence[Record]) -> str:
    digest = hashlib.blake2b(before.encode(), digest_size=12)
    for record in records:
        digest.update(record_line(record))
    return digest.hexdigest()
