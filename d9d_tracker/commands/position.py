"""How far the replay of a run has come."""

import hashlib
import json
import os
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

from d9d_tracker.config import TrackerConfig
from d9d_tracker.provider.jsonl_format import record_line
from d9d_tracker.reading import End, StoredRun
from d9d_tracker.record import Record


class Mark(NamedTuple):
    """The first step behind what was sent, how many points that was, and their digest."""

    step: int
    points: int
    digest: str


class Position:
    """What a destination was sent of a run, in a file beside that of the run."""

    def __init__(self, run: StoredRun, config: TrackerConfig):
        text = config.model_dump_json(exclude={"accumulator"})
        digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        self.path = run.path.with_name(f"{run.path.stem}.{getattr(config, 'provider', 'backend')}-{digest}.replay")
        known = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.state: dict[str, Any] | None = known.get("state")
        self.opening: bool = known.get("opening", False)
        self.marks = [Mark(*mark) for mark in known.get("marks", [])]
        self.hparams: dict[str, Any] = known.get("hparams", {})
        self.end: End | None = End(*known["end"]) if known.get("end") else None
        self._sending: Mark | None = Mark(*known["sending"]) if known.get("sending") else None

    @property
    def step(self) -> int:
        """The first step that the destination may not hold all of."""
        return self.marks[-1].step if self.marks else 0

    @property
    def points(self) -> int:
        """How many points of earlier steps it holds."""
        return self.marks[-1].points if self.marks else 0

    def forget_changed(self, records: Sequence[Record]) -> bool:
        """Drop marks behind which a point has changed since; return whether the destination may hold other values."""
        told = [*self.marks, *([self._sending] if self._sending else [])]
        steps, good = [record.step for record in records], 0
        for mark, before in zip(told, [None, *told], strict=False):
            begin, digest = (before.points, before.digest) if before else (0, "")
            if bisect_left(steps, mark.step) != mark.points or _digest(digest, records[begin : mark.points]) != mark[2]:
                break
            good += 1
        del self.marks[good:]
        self._sending = None
        return good < len(told)

    def begin(self, part: Sequence[Record]) -> None:
        """Note, durably, what is sent next: a kill may come when the destination has it and before that is noted."""
        before = self.marks[-1].digest if self.marks else ""
        self._sending = Mark(part[-1].step + 1, self.points + len(part), _digest(before, part))
        self.save()

    def move(self) -> None:
        """Note, durably, that the destination holds what was sent last."""
        assert self._sending is not None
        self.marks.append(self._sending)
        self._sending = None
        self.save()

    def save(self) -> None:
        """Write the file anew, or not at all."""
        fields = {
            "state": self.state,
            "opening": self.opening,
            "marks": self.marks,
            "sending": self._sending,
            "hparams": self.hparams,
            "end": self.end,
        }
        draft = self.path.with_suffix(".draft")
        with draft.open("w") as file:
            json.dump(fields, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path)


def _digest(before: str, records: Sequence[Record]) -> str:
    digest = hashlib.blake2b(before.encode(), digest_size=12)
    for record in records:
        digest.update(record_line(record))
    return digest.hexdigest()
