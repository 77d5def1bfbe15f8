"""The points of a run's file, block by block, without making an object of each."""

import functools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from d9d_tracker.provider.jsonl_format import read_record
from d9d_tracker.record import Histogram

_BLOCK_BYTES = 1 << 16  # what is made of it stays in the processor's cache: twice as fast as a megabyte
# A point as `record_line` writes it, as nearly all lines are; any other line is read as JSON. So nothing in Python runs
# for each of a million lines.
_SCALAR = (
    rb'\{"type":"scalar","name":"(%s)","step":(\d++),"value":"?([^",}]++)"?,"context":\{([^{}\\]*+)\}'
    rb'(?:,"time":([^,}]++))?\}'
)
_ANY_NAME = rb'[^"\\]*+'
_HEADER_OF_HISTOGRAM = re.compile(
    rb'\{"type":"histogram","name":"([^"\\]*+)","step":(\d++),"context":\{([^{}\\]*+)\},"count"'
)


class Key(NamedTuple):
    """What tells a series from others: ``"scalar"`` or ``"histogram"``, its name, and its tags, sorted."""

    kind: str
    name: str
    context: tuple[tuple[str, str], ...]


class Part(NamedTuple):
    """Points of one series, in the order of the file: arrays of shape ``[points]``, or a list of histograms."""

    key: Key
    steps: np.ndarray
    values: np.ndarray | list[Histogram] | None
    times: np.ndarray


def scan(path: Path, wanted: Callable[[Key], bool], name: str | None = None) -> Iterator[Part]:
    """Yield the points of a run's file by series, a block of the file at a time; without values where not wanted.

    Scalars of other names than ``name`` are passed over unread, if one is given.
    """
    try:
        yield from _scan(path, wanted, name)
    except (KeyError, TypeError, ValueError) as error:
        words = f"a line lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path}: {words}; mend or remove that line") from None


def _scan(path: Path, wanted: Callable[[Key], bool], name: str | None) -> Iterator[Part]:
    torn, lines = False, _lines(name)
    with path.open("rb") as file:
        file.readline()
        for block in blocks(file):
            rows = lines.findall(block)
            others = [(index, row[5]) for index, row in enumerate(rows) if row[5]]
            if torn:
                raise ValueError("a line is not JSON but others follow")
            yield from _scalars([row for row in rows if row[1]], wanted)
            for index, line in others:
                try:
                    points = _other(line, wanted)
                except json.JSONDecodeError:
                    torn = True  # by a kill, if it is the last line of all
                    if index < len(rows) - 1:
                        raise ValueError("a line is not JSON but others follow") from None
                else:
                    if points is not None:
                        yield points


def _lines(name: str | None) -> re.Pattern[bytes]:
    if name is None:
        return re.compile(rb"^(?:%s|(.++))$" % (_SCALAR % _ANY_NAME), re.MULTILINE)
    literal = re.escape(json.dumps(name)[1:-1].encode("ascii"))
    passed_over = rb'\{"type":"scalar","name":"(?!%s")[^\n]*+' % literal
    return re.compile(rb"^(?:%s|%s|(.++))$" % (_SCALAR % literal, passed_over), re.MULTILINE)


def blocks(file: BinaryIO) -> Iterator[bytes]:
    """Yield the whole lines of a file, as many at a time as make up a block."""
    rest: list[bytes] = []
    while block := file.read(_BLOCK_BYTES):
        end = block.rfind(b"\n") + 1
        if end:
            yield b"".join((*rest, block[:end]))
            rest = []
        rest.append(block[end:])


def _scalars(rows: list[tuple[bytes, ...]], wanted: Callable[[Key], bool]) -> Iterator[Part]:
    if not rows:
        return
    names, steps, values, contexts, times, _ = zip(*rows, strict=True)
    codes: dict[tuple[bytes, bytes], int] = {}
    code_of = np.array([codes.setdefault(series, len(codes)) for series in zip(names, contexts, strict=True)])
    columns = _numbers(steps, np.int64), _numbers(values, np.float64), _times(times)
    order = np.argsort(code_of, kind="stable")
    ends = np.cumsum(np.bincount(code_of)).tolist()
    for (name, context), begin, end in zip(codes, [0, *ends], ends, strict=False):
        key = _key("scalar", name, context)
        of_steps, of_values, of_times = (column[order[begin:end]] for column in columns)
        yield Part(key, of_steps, of_values if wanted(key) else None, of_times)


@functools.lru_cache(maxsize=10_000)
def _key(kind: str, name: bytes, context: bytes) -> Key:
    return Key(kind, json.loads(b'"%s"' % name), tuple(sorted(json.loads(b"{%s}" % context).items())))


def _numbers(texts: tuple[bytes, ...], dtype: type) -> np.ndarray:
    numbers = np.fromstring(b" ".join(texts), dtype=dtype, sep=" ")
    if len(numbers) != len(texts):
        raise ValueError("a point has a step, value or time that is no number")
    return numbers


def _times(texts: tuple[bytes, ...]) -> np.ndarray:
    return _numbers(texts if all(texts) else tuple(text or b"nan" for text in texts), np.float64)


def _other(line: bytes, wanted: Callable[[Key], bool]) -> Part | None:
    header = _HEADER_OF_HISTOGRAM.match(line)
    if header is not None and line.endswith(b"]}"):
        key = _key("histogram", header[1], header[3])
        if not wanted(key):
            return Part(key, np.array([int(header[2])]), None, np.array([np.nan]))
    fields = json.loads(line)
    if not isinstance(fields, dict) or fields.get("type") not in ("scalar", "histogram", "hparams", "end"):
        raise ValueError(f"a line is no point of a run: {line[:80]!r}")
    if fields["type"] in ("hparams", "end"):
        return None
    record = read_record(fields)
    key = Key(fields["type"], record.name, tuple(sorted(record.context.items())))
    values = [record.value] if isinstance(record.value, Histogram) else np.array([record.value])
    time = np.nan if record.time is None else record.time
    return Part(key, np.array([record.step]), values if wanted(key) else None, np.array([time]))
