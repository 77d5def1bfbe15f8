"""A backend that does what it is told to by files, and an action; a writer's process imports them, without torch."""

import json
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from d9d_tracker import Histogram, RecordRun, RecordTracker, TrackerConfig, register_backend


def add_hparams(its: Any, hparams: dict[str, Any]) -> None:
    its.add_hparams(hparams)


def lower_edges(histogram: Histogram) -> dict[float, int]:
    """How many values are in the bin that begins there: every value that is logged here begins a bin."""
    pairs = zip(histogram.edges.tolist(), histogram.counts.tolist(), strict=False)
    return {edge: count for edge, count in pairs if count}


class OwnConfig(TrackerConfig):
    """A backend that obeys files in its folder.

    Attributes:
        path: The folder. While it holds a file ``closed``, opening waits; ``refused``, opening raises; ``down``,
            nothing can be written.
        once: Whether it takes nothing more for a step that it has stored.
    """

    provider: Literal["matrix"] = "matrix"
    path: Path
    once: bool = False


class OwnRun(RecordRun):
    """All points of a run in one file, written anew at every flush."""

    def __init__(self, config: OwnConfig, run_id: str | None):
        super().__init__(run_id or "run")
        self._config = config
        self._file = config.path / f"{self.id}.json"
        content = json.loads(self._file.read_text()) if self._file.exists() else {"points": [], "hparams": {}}
        self._points = {(name, tags, step): value for name, tags, step, value in content["points"]}
        self._hparams = content["hparams"]
        self._stored = max((step for _, _, step in self._points), default=-1)

    def write_record(self, record: Any) -> None:
        self._fail()
        if self._config.once and record.step <= self._stored:
            raise ValueError(f"{record.name!r}: step {record.step} is stored already")
        value = lower_edges(record.value) if isinstance(record.value, Histogram) else record.value
        self._points[record.name, json.dumps(dict(record.context)), record.step] = value

    def add_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._fail()
        self._hparams |= hparams
        self._save()

    def sync(self) -> None:
        self._fail()
        self._save()
        self._stored = max((step for _, _, step in self._points), default=-1)

    def rewind(self, step: int) -> None:
        super().rewind(step)
        self._points = {key: value for key, value in self._points.items() if key[2] < step}
        self._save()
        self._stored = step - 1

    def _save(self) -> None:
        points = [[*key, [*value.items()] if isinstance(value, dict) else value] for key, value in self._points.items()]
        draft = self._file.with_suffix(".new")
        draft.write_text(json.dumps({"points": points, "hparams": self._hparams}))
        draft.replace(self._file)

    def _fail(self) -> None:
        if (self._config.path / "down").exists():
            raise ConnectionError("the test's own backend is down")


class OwnTracker(RecordTracker[OwnConfig]):
    def __init__(self, config: OwnConfig):
        super().__init__(config)
        self.amends = not config.once

    def make_id(self, properties: Any) -> str:
        return secrets.token_hex(4)

    def open_run(self, properties: Any, run_id: str | None) -> OwnRun:
        self.config.path.mkdir(parents=True, exist_ok=True)
        while (self.config.path / "closed").exists():
            time.sleep(0.01)
        if (self.config.path / "refused").exists():
            raise ValueError("the test's own backend refuses")
        return OwnRun(self.config, run_id or self.new_id)


register_backend(OwnConfig, OwnTracker)
