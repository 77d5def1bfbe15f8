"""What an event file of TensorBoard consists of."""

import io
import json
import time
from collections.abc import Iterable

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from d9d_tracker.base import RunConfig
from d9d_tracker.provider.hparams import flat_hparams, plain_hparams
from d9d_tracker.provider.names import encodable
from d9d_tracker.record import Histogram


def file_start() -> bytes:
    """Return what every event file begins with."""
    return _framed(Event(wall_time=time.time(), file_version="brain.Event:2"))


def purge(step: int) -> bytes:
    """Return the mark that makes readers forget what earlier events say of ``step`` and later ones."""
    return _framed(Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START)))


def points(step: int, values: Iterable[Summary.Value]) -> bytes:
    """Return the points of one step."""
    return _framed(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))


def point(tag: str, value: float | Histogram) -> Summary.Value:
    """Return one point of one tag.

    Args:
        tag: Name of the series on TensorBoard's page.
        value: A number, which becomes a float32; or a histogram of at least one finite value, which keeps its edges
            (except that TensorBoard reads the outermost ones as the minimum and the maximum), counts and moments.
    """
    if not isinstance(value, Histogram):
        with np.errstate(over="ignore"):
            return Summary.Value(tag=tag, simple_value=float(np.float32(value)))
    return Summary.Value(
        tag=tag,
        histo=HistogramProto(
            min=value.min,
            max=value.max,
            num=value.count,
            sum=value.sum,
            sum_squares=value.sum_squares,
            bucket_limit=value.edges[1:].tolist(),
            bucket=value.counts.tolist(),
        ),
    )


def properties(run: RunConfig, run_id: str) -> dict[str, Summary.Value]:
    """Return what shows how a run was started, by tag.

    Args:
        run: Its name, description and hyperparameters. They become the texts ``name``, ``description`` and ``hparams``
            (the whole, as JSON), and a row of the page HParams (flattened).
        run_id: The run's identity.
    """
    # Four spaces make Markdown show text as it is.
    hparams = "".join(f"    {line}\n" for line in json.dumps(plain_hparams(run.hparams), indent=2).split("\n"))
    texts = {"name": run.name, "description": run.description, "hparams": hparams}
    summaries = [text_pb(tag, encodable(text)) for tag, text in texts.items() if text is not None]
    flat = {encodable(key): encodable(value) for key, value in flat_hparams(run.hparams).items()}
    summaries.append(hparams_pb(flat, trial_id=run_id))
    return {value.tag: value for summary in summaries for value in summary.value}


def _framed(event: Event) -> bytes:
    """Return an event as it stands in the file, with its length and checksums."""
    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()
