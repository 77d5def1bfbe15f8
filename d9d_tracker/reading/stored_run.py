"""Runs that are files of JSON lines, as NumPy: what `d9d_tracker.read` returns."""

import contextlib
import functools
import heapq
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from d9d_tracker.log import logger
from d9d_tracker.record import Histogram, Record

from .scan import Key, Part, blocks, scan

_LONGEST_END = 1 << 16  # bytes


class End(NamedTuple):
    """How a run ended.

    Attributes:
        time: When, in seconds since the epoch.
        outcome: ``"finished"``; ``"failed"`` by an exception; or ``"killed"``, as by Ctrl-C.
        error: The exception's type and message, None if it finished.
    """

    time: float
    outcome: str
    error: str | None


@dataclass(frozen=True)
class Series:
    """A series of a run.

    Attributes:
        kind: ``"scalar"`` or ``"histogram"``.
        name: Its name.
        context: Its tags.
        points: How many points it has.
        first: Its first step.
        last: Its last step.
    """

    kind: str
    name: str
    context: dict[str, str]
    points: int
    first: int
    last: int


@dataclass(frozen=True, eq=False)
class Scalars:
    """The points of a scalar series by rising step.

    Attributes:
        name: Its name.
        context: Its tags.
        steps: int64 of shape ``[points]``.
        values: float64 of shape ``[points]``.
        times: When each step began, in seconds since the epoch: float64 of shape ``[points]``, NaN where not known.
    """

    name: str
    context: dict[str, str]
    steps: np.ndarray
    values: np.ndarray
    times: np.ndarray


@dataclass(frozen=True, eq=False)
class Histograms:
    """The points of a histogram series by rising step.

    Attributes:
        name: Its name.
        context: Its tags.
        steps: int64 of shape ``[points]``.
        values: The histograms.
        times: When each step began, in seconds since the epoch: float64 of shape ``[points]``, NaN where not known.
    """

    name: str
    context: dict[str, str]
    steps: np.ndarray
    values: list[Histogram]
    times: np.ndarray

    def quantiles(self, fractions: list[float]) -> np.ndarray:
        """Return quantiles over time.

        Args:
            fractions: Between 0 and 1.

        Returns:
            float64 of shape ``[fractions, points]``; NaN where a histogram has no finite value.
        """
        return np.array([[histogram.quantile(q) for histogram in self.values] for q in fractions])


def read(path: str | Path) -> list["StoredRun"]:
    """Read the runs that the backend ``jsonl`` has written, running ones as well.

    Args:
        path: The file of a run, or a folder of such files.

    Returns:
        The runs by the name of their file, which begins with the time of the start. Their points are read from the
        files when they are asked for.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If the file is no run.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return [StoredRun(path)]
    runs = []
    for file in sorted(path.glob("*.jsonl")):
        try:
            runs.append(StoredRun(file))
        except (OSError, ValueError) as error:  # of a colleague, for one, who lets nobody read it
            logger.warning("left out: %s", error)
    if not runs:
        raise FileNotFoundError(f"{path} holds no run (no file *.jsonl of one): point at a folder or file of runs")
    return runs


class StoredRun:
    """A run in a file.

    For a series and step, the last line counts; a last line that was cut in half by a kill is left out. Each call reads
    the file, a block at a time, so that only what is returned takes memory.

    Args:
        path: The file.

    Attributes:
        path: The file.
        id: The run's id.
        name: Its name.
        description: Free text, if any.
        started: When it began, in seconds since the epoch; None in files of earlier versions.
    """

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as file:
            line = file.readline()
        try:
            fields = json.loads(line)
            self.id, self.name, self.description = fields["id"], fields["name"], fields["description"]
            self._hparams: dict[str, Any] = dict(fields["hparams"])
            self.started: float | None = fields.get("time")
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} is not the file of a run, or of one that was killed as it began") from None

    def __repr__(self) -> str:
        """Return name and file."""
        return f"StoredRun({self.name!r}, {str(self.path)!r})"

    @functools.cached_property
    def hparams(self) -> dict[str, Any]:
        """Hyperparameters, also those that came later; non-finite ones as the text they are stored as."""
        hparams = dict(self._hparams)
        with self.path.open("rb") as file:
            for block in blocks(file):
                for line in block.splitlines() if b'{"type":"hparams"' in block else ():
                    if line.startswith(b'{"type":"hparams"'):
                        with contextlib.suppress(ValueError):  # it is damaged, as whoever reads points is told
                            hparams |= json.loads(line)["hparams"]
        return hparams

    @property
    def end(self) -> End | None:
        """How the run ended; None while it goes on, or if it was killed so that it could not say."""
        with self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - _LONGEST_END))
            last = file.read().rpartition(b"\n")[0].rpartition(b"\n")[2]
        if not last.startswith(b'{"type":"end"'):
            return None
        fields = json.loads(last)
        return End(fields["time"], fields["outcome"], fields["error"])

    def series(self) -> list[Series]:
        """Return all series, in the order in which they first appeared."""
        found = []
        for key, parts in self._collect(lambda key: False).items():
            steps = np.unique(np.concatenate([part.steps for part in parts]))
            found.append(Series(key.kind, key.name, dict(key.context), len(steps), int(steps[0]), int(steps[-1])))
        return found

    def scalars(self, name: str, context: Mapping[str, str] | None = None) -> Scalars:
        """Return a scalar series.

        Args:
            name: Its name.
            context: Its tags; not needed if there is only one series of that name.

        Raises:
            KeyError: If there is no such series, or there are several.
        """
        return Scalars(*self._find("scalar", name, context))

    def histograms(self, name: str, context: Mapping[str, str] | None = None) -> Histograms:
        """Return a histogram series.

        Args:
            name: Its name.
            context: Its tags; not needed if there is only one series of that name.

        Raises:
            KeyError: If there is no such series, or there are several.
        """
        return Histograms(*self._find("histogram", name, context))

    def load(self, *patterns: str) -> list[Scalars | Histograms]:
        """Return all series of which the name matches, reading the file once.

        Args:
            *patterns: As the shell's, one of which a name is to match: ``"train/*"``. All series without any.
        """
        patterns = patterns or ("*",)

        def wanted(key: Key) -> bool:
            return any(fnmatchcase(key.name, pattern) for pattern in patterns)

        return [
            (Scalars if key.kind == "scalar" else Histograms)(*_latest(key, parts))
            for key, parts in self._collect(wanted, only=True).items()
        ]

    def records(self) -> Iterator[Record]:
        """Yield all points in the order of their steps: what a backend takes."""
        yield from heapq.merge(*map(_records_of, self.load()), key=attrgetter("step"))

    def to_pandas(self, pattern: str = "*") -> Any:
        """Return scalar series as a pandas DataFrame: a row a point.

        Args:
            pattern: Which series, as the shell's: ``"train/*"``.

        Returns:
            Columns ``name``, ``step``, ``value``, ``time`` (seconds since the epoch) and one for each tag.

        Raises:
            ImportError: If pandas is not installed.
        """
        try:
            import pandas  # optional: only for who asks for it
        except ImportError as error:
            raise ImportError("`to_pandas` needs pandas: pip install 'd9d_tracker[pandas]'") from error

        return pandas.DataFrame(self._columns(pattern))

    def _columns(self, pattern: str) -> dict[str, Any]:
        loaded = [series for series in self.load(pattern) if isinstance(series, Scalars)]
        sizes = [len(series.steps) for series in loaded]

        def repeated(values: list[str | None]) -> np.ndarray:
            return np.repeat(np.array(values, dtype=object), sizes)

        columns: dict[str, Any] = {
            "name": repeated([series.name for series in loaded]),
            "step": np.concatenate([np.empty(0, np.int64), *(series.steps for series in loaded)]),
            "value": np.concatenate([np.empty(0), *(series.values for series in loaded)]),
            "time": np.concatenate([np.empty(0), *(series.times for series in loaded)]),
        }
        for tag in sorted({tag for series in loaded for tag in series.context}):
            name = tag if tag not in columns else f"context.{tag}"
            columns[name] = repeated([series.context.get(tag) for series in loaded])
        return columns

    def _find(self, kind: str, name: str, context: Mapping[str, str] | None) -> tuple[Any, ...]:
        tags = None if context is None else tuple(sorted(context.items()))

        def wanted(key: Key) -> bool:
            return key.kind == kind and key.name == name and tags in (None, key.context)

        found = self._collect(wanted, only=True, name=name)
        if len(found) == 1:
            return _latest(*next(iter(found.items())))
        if found:
            raise KeyError(f"{self} has {name!r} in several contexts, name one: {[dict(key.context) for key in found]}")
        known = [f"{series.kind} {series.name!r} {series.context or ''}".rstrip() for series in self.series()]
        raise KeyError(f"{self} has no {kind} {name!r} {dict(context or {})}; it has: {', '.join(known) or 'nothing'}")

    def _collect(
        self, wanted: Callable[[Key], bool], only: bool = False, name: str | None = None
    ) -> dict[Key, list[Part]]:
        parts: dict[Key, list[Part]] = {}
        for points in scan(self.path, wanted, name):
            if not only or points.values is not None:
                parts.setdefault(points.key, []).append(points)
        return parts


def _records_of(series: Scalars | Histograms) -> Iterator[Record]:
    values = series.values if isinstance(series, Histograms) else series.values.tolist()
    for step, value, time in zip(series.steps.tolist(), values, series.times.tolist(), strict=True):
        yield Record(series.name, step, series.context, value, None if math.isnan(time) else time)


def _latest(key: Key, parts: list[Part]) -> tuple[Any, ...]:
    """Return a series by rising step; of several points of a step, the last that was written."""
    steps = np.concatenate([part.steps for part in parts])
    order = np.argsort(steps, kind="stable")
    ordered = steps[order]
    kept = order[np.append(ordered[1:] != ordered[:-1], True)]
    dtype = np.float64 if key.kind == "scalar" else object
    values = np.concatenate([np.array(part.values, dtype=dtype) for part in parts])[kept]
    times = np.concatenate([part.times for part in parts])[kept]
    return key.name, dict(key.context), steps[kept], values if key.kind == "scalar" else list(values), times
