"""The lines of a run's JSON file: how they are written, and how to read them back."""

import functools
import itertools
import json
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from d9d_tracker.base import RunConfig
from d9d_tracker.hparams import plain_hparams
from d9d_tracker.points import Points
from d9d_tracker.record import STATISTICS, Histogram, Record


def _strict(value: Any) -> Any:
    """Replace non-finite numbers, for which JSON has no notation, by ``"nan"``, ``"inf"`` and ``"-inf"``."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: _strict(part) for key, part in value.items()}
    return [_strict(part) for part in value] if isinstance(value, list) else value


def _line(fields: dict[str, Any]) -> bytes:
    # ASCII throughout: a line cut in half is never cut within a character.
    return json.dumps(_strict(fields), allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


_LONGEST_ERROR = 1000  # characters
_number = functools.lru_cache(maxsize=20_000)(lambda edge: json.dumps(_strict(edge)))
_quoted = functools.lru_cache(maxsize=10_000)(json.dumps)


def run_line(run_id: str, properties: RunConfig) -> bytes:
    """Write the first line of a run's file."""
    names = {"id": run_id, "name": properties.name, "description": properties.description}
    started = time.time() if properties.started is None else properties.started
    return _line({"type": "run", **names, "hparams": plain_hparams(properties.hparams), "time": started})


def end_line(error: BaseException | None, ended: float | None = None) -> bytes:
    """Write how a run ended, the last line of its file for as long as nobody goes on with it."""
    outcome = "finished" if error is None else "failed" if isinstance(error, Exception) else "killed"
    words = None if error is None else f"{type(error).__name__}: {error}"[:_LONGEST_ERROR]
    fields = {"outcome": outcome, "error": words}
    return _line({"type": "end", "time": time.time() if ended is None else ended, **fields})


def hparams_line(hparams: Mapping[str, Any]) -> bytes:
    """Write hyperparameters that came after the first line as one of their own."""
    return _line({"type": "hparams", "hparams": plain_hparams(dict(hparams))})


def points_lines(points: Points) -> bytes:
    """Write a window as ``record_line`` writes each point, put together from what series and steps have in common."""
    heads = [f'{{"type":"scalar","name":{_quoted(name)},"step":' for name, _ in points.series]
    contexts = [f',"context":{json.dumps(context) if context else "{}"}' for _, context in points.series]
    texts = list(map(repr, points.values.tolist()))
    for index in np.flatnonzero(~np.isfinite(points.values)).tolist():
        texts[index] = f'"{texts[index]}"'
    series = points.places.tolist()
    changes = (np.diff(points.steps, prepend=-1) != 0) | (np.diff(points.times, prepend=-1.0) != 0)
    begins = [*np.flatnonzero(changes).tolist(), len(series)]
    lines: list[str] = []
    histograms = deque(points.histograms)
    for begin, end in itertools.pairwise(begins):
        step, began = int(points.steps[begin]), float(points.times[begin])
        while histograms and histograms[0].step < step:
            lines.append(record_line(histograms.popleft()).decode("ascii"))
        middle, tail = f'{step},"value":', f',"time":{began!r}}}\n' if began else "}\n"
        lines += [
            f"{heads[one]}{middle}{text}{contexts[one]}{tail}"
            for one, text in zip(series[begin:end], texts[begin:end], strict=True)
        ]
    lines += [record_line(record).decode("ascii") for record in histograms]
    return "".join(lines).encode("ascii")


def record_line(record: Record) -> bytes:
    """Write a point as a line."""
    if not isinstance(record.value, Histogram):
        # Pieced together, because most lines are like this one and differ in two numbers from the one before.
        value = repr(float(record.value)) if math.isfinite(record.value) else f'"{record.value}"'
        context = json.dumps(dict(record.context)) if record.context else "{}"
        name = _quoted(record.name)
        line = f'{{"type":"scalar","name":{name},"step":{record.step},"value":{value},"context":{context}'
        began = "" if record.time is None else f',"time":{record.time!r}'
        return f"{line}{began}}}\n".encode("ascii")
    histogram = record.value
    head = {"type": "histogram", "name": record.name, "step": record.step, "context": dict(record.context)}
    statistics = {key: getattr(histogram, key) for key in ("count", *STATISTICS)}
    line = _line({**head, **statistics, **({} if record.time is None else {"time": record.time})})
    # Hundreds of numbers: edges are few in all, and are written out once.
    edges, counts = _without_gaps(histogram)
    edges = ",".join(map(_number, edges.tolist()))
    counts = ",".join(map(str, counts.tolist()))
    return b'%s,"edges":[%s],"counts":[%s]}\n' % (line[:-2], edges.encode("ascii"), counts.encode("ascii"))


def _without_gaps(histogram: Histogram) -> tuple[np.ndarray, np.ndarray]:
    """Return edges and counts with one bin for every run of empty ones."""
    counts = histogram.counts
    if not counts.size:
        return histogram.edges, counts
    kept = np.flatnonzero(np.concatenate(([True], (counts[:-1] > 0) | (counts[1:] > 0), [True])))
    return histogram.edges[kept], np.add.reduceat(counts, kept[:-1])


def read_record(fields: dict[str, Any]) -> Record:
    """Return the point that a line says."""
    if fields["type"] == "scalar":
        value = float(fields["value"])
    else:
        value = Histogram(**{name: fields[name] for name in ("edges", "counts", *STATISTICS)})
    return Record(fields["name"], fields["step"], fields["context"], value, fields.get("time"))


def whole_lines(data: bytes, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield where each whole line ends and what it says, without what a kill tore off at the end of the file."""
    end, torn = 0, None
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        end += len(line) + 1
        try:
            fields = json.loads(line)
        except ValueError:
            torn = torn or number
            continue
        if torn:
            raise ValueError(f"line {torn} of {path} is not JSON but others follow: mend or remove that line")
        if not isinstance(fields, dict) or (number == 1) != (fields.get("type") == "run"):
            raise ValueError(
                f"line {number} of {path} is not one of a run: point at the file of a run, or mend that line"
            )
        yield end, fields
