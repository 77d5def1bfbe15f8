"""What an event file of TensorBoard consists of."""

import io
import json
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from d9d_tracker.base import RunConfig
from d9d_tracker.hparams import flat_hparams, plain_hparams
from d9d_tracker.provider.names import encodable
from d9d_tracker.record import Histogram

# Protocol buffers are made at run time, where type checkers do not see them.
_EVENTS: Any = event_pb2
_SUMMARIES: Any = summary_pb2


def file_start() -> bytes:
    """Return what every event file begins with."""
    return _framed(_EVENTS.Event(wall_time=time.time(), file_version="brain.Event:2"))


def purge(step: int) -> bytes:
    """Return the mark that makes readers forget what earlier events say of ``step`` and later ones."""
    return _framed(
        _EVENTS.Event(wall_time=time.time(), step=step, session_log=_EVENTS.SessionLog(status=_EVENTS.SessionLog.START))
    )


def points(step: int, values: Iterable[Any], began: float | None = None) -> bytes:
    """Return the points of one step, which began then, in seconds since the epoch, or now."""
    return _framed(_EVENTS.Event(wall_time=began or time.time(), step=step, summary=_SUMMARIES.Summary(value=values)))


def point(tag: str, value: float | Histogram) -> Any:
    """Return one point of one tag: a float32, or a histogram of at least one finite value with its own edges."""
    if not isinstance(value, Histogram):
        with np.errstate(over="ignore"):
            return _SUMMARIES.Summary.Value(tag=tag, simple_value=float(np.float32(value)))
    facts = {"min": value.min, "max": value.max, "num": value.count, "sum": value.sum, "sum_squares": value.sum_squares}
    bins = {"bucket_limit": value.edges[1:].tolist(), "bucket": value.counts.tolist()}
    return _SUMMARIES.Summary.Value(tag=tag, histo=_SUMMARIES.HistogramProto(**facts, **bins))


def properties(run: RunConfig, run_id: str) -> dict[str, Any]:
    """Return, by tag, the texts ``name``, ``description`` and ``hparams`` (JSON), and a row of the page HParams."""
    # Four spaces make Markdown show text as it is.
    hparams = "".join(f"    {line}\n" for line in json.dumps(plain_hparams(run.hparams), indent=2).split("\n"))
    texts = {"name": run.name, "description": run.description, "hparams": hparams}
    summaries = [text_pb(tag, encodable(text)) for tag, text in texts.items() if text is not None]
    flat = {encodable(key): encodable(value) for key, value in flat_hparams(run.hparams).items()}
    summaries.append(hparams_pb(flat, trial_id=run_id, start_time_secs=run.started))
    return {value.tag: value for summary in summaries for value in summary.value}


def _framed(event: Any) -> bytes:
    """Return an event as it stands in the file, with its length and checksums."""
    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()
