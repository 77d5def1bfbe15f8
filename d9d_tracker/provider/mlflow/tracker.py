"""Backend that writes to an MLflow server or store."""

import json
import math
import os
import re
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from mlflow import MlflowClient, get_tracking_uri
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from mlflow.utils.validation import MAX_METRICS_PER_BATCH, MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH
from typing_extensions import override

from d9d_tracker.backend import RecordTracker
from d9d_tracker.base import RunConfig
from d9d_tracker.hparams import flat_hparams, plain_hparams
from d9d_tracker.log import logger
from d9d_tracker.provider.command_line import command
from d9d_tracker.provider.lock import lock_on_this_machine, unlock_if_it_fails
from d9d_tracker.provider.locked_run import LockedRun
from d9d_tracker.provider.names import encodable, flat_name
from d9d_tracker.record import Histogram, Record

from . import MLflowConfig
from .keys import chunks, valid_key

_OUR_ID = "d9d_tracker.id"  # a tag: MLflow's own ids cannot be chosen
_PARAMS_PER_BATCH = 20  # of 6000 escaped characters each, in a request of a megabyte at most


class MLflowRun(LockedRun):
    """An open run of MLflow.

    Keys have ``:`` in place of ``=``, as MLflow wants it (`valid_key`). MLflow knows no histograms: they become
    quantiles, moments and counts, ``<key>/p50`` and so on. A non-finite number breaks MLflow's page, so NaN is the
    point 1 of ``<key>/nan``, and an infinity the point 1 or -1 of ``<key>/inf``.

    MLflow can neither replace nor delete a value: a step that holds one keeps it, and what is logged for it later is
    left out; but at the last step of an earlier life, which may have ended in its middle, another value is added with a
    later time, and the last one holds. What comes again after an unanswered flush, MLflow knows by its time stamp.

    Attributes:
        sdk: MLflow's own client; the run is ``id`` there.
    """

    def __init__(self, client: MlflowClient, run_id: str, lock: int, ended: float | None = None):
        super().__init__(run_id, lock)
        self._ended = ended
        self.sdk = client
        self._pending: dict[tuple[str, int], Metric] = {}
        self._last: dict[str, int] = {}  # last step sent of every key
        self._late: dict[str, set[int]] = {}  # all steps that MLflow has, of keys of which a value came late
        self._rewound: int | None = None
        self._has_said_kept = False
        self._kept: dict[str, dict[int, float]] = {}  # values of an earlier life, of the keys that were logged since

    def rewind(self, step: int) -> None:
        """Leave out what an earlier life of this run wrote at ``step`` or later: MLflow keeps it, once."""
        super().rewind(step)
        self._pending = {key: metric for key, metric in self._pending.items() if metric.step < step}
        self._last, self._late = {}, {}
        self._rewound = step

    @override
    def add_hparams(self, hparams: Mapping[str, Any]) -> None:
        _log_params(self.sdk, self.id, hparams)

    @override
    def write_record(self, record: Record) -> None:
        value = record.value
        if isinstance(value, Histogram):
            for kind, number in value.summary().items():
                self._put(record, number, f"/{kind}")
        elif math.isnan(value):
            self._put(record, 1.0, "/nan")
        elif math.isinf(value):
            self._put(record, math.copysign(1.0, value), "/inf")
        else:
            self._put(record, value)

    def _put(self, record: Record, value: float, kind: str = "") -> None:
        if not math.isfinite(value):
            # Moments of values near the largest float overflow.
            return
        # MLflow's page makes a section of what has all but the last part in common.
        key = valid_key(self._names.name(flat_name(record.name, record.context, sign=":"), kind))
        if self._has(key, record.step):
            raise ValueError(
                f"{record.name!r} at step {record.step}: MLflow cannot replace what was flushed for this step; flush "
                "between steps"
            )
        self._pending[key, record.step] = Metric(key, value, round((record.time or time.time()) * 1000), record.step)

    def _has(self, key: str, step: int) -> bool:
        if step > self._last.get(key, -1):
            return False
        if key not in self._late:
            self._late[key] = {metric.step for metric in self.sdk.get_metric_history(self.id, key)}
        return step in self._late[key]

    @override
    def sync(self) -> None:
        if self._rewound is not None:
            self._leave_out_what_is_kept(self._rewound)
        waiting = list(self._pending.values())
        for start in range(0, len(waiting), MAX_METRICS_PER_BATCH):
            batch = waiting[start : start + MAX_METRICS_PER_BATCH]
            self.sdk.log_batch(self.id, metrics=batch, synchronous=True)
            for metric in batch:
                del self._pending[metric.key, metric.step]
                self._last[metric.key] = max(metric.step, self._last.get(metric.key, -1))
                self._late.get(metric.key, set()).add(metric.step)

    def _leave_out_what_is_kept(self, first: int) -> None:
        for key in {key for key, _ in self._pending} - self._kept.keys():
            history = self.sdk.get_metric_history(self.id, key)
            in_time = sorted(history, key=lambda metric: metric.timestamp)
            self._kept[key] = {metric.step: metric.value for metric in in_time if metric.step >= first}
        has_dropped = False
        for (key, step), metric in list(self._pending.items()):
            kept = self._kept[key]
            if step not in kept:
                continue
            if step == max(kept) and metric.value != kept[step]:
                self._pending[key, step] = Metric(key, metric.value, round(time.time() * 1000), step)
            else:
                del self._pending[key, step]
                has_dropped = True
        if has_dropped and not self._has_said_kept:
            self._has_said_kept = True
            words = (
                "run %r: MLflow keeps what it was given of step %d and later before the run was taken back to it, and "
                "what is logged there now is not stored"
            )
            logger.warning(words, self.id, first)

    @override
    def close_run(self) -> None:
        self.sync()
        failed = "FAILED" if isinstance(self._error, Exception) else "KILLED"
        status = "FINISHED" if self._error is None else failed
        self.sdk.set_terminated(self.id, status, _milliseconds(self._ended))


class MLflowTracker(RecordTracker[MLflowConfig]):
    """Opens runs of an MLflow experiment; those that it goes on with are marked as running again."""

    amends = False
    is_heavy = True

    @override
    def how_to_open(self) -> str | None:
        uri = _without_password(_expanded(self.config.tracking_uri) or get_tracking_uri())
        is_server = uri.startswith(("http://", "https://"))
        return uri if is_server else command("mlflow", "ui", "--backend-store-uri", uri)

    @override
    def make_id(self, properties: RunConfig) -> str:
        return secrets.token_hex(16)

    @override
    def open_run(self, properties: RunConfig, run_id: str | None) -> MLflowRun:
        client = MlflowClient(tracking_uri=_expanded(self.config.tracking_uri))
        if run_id is not None:
            run_id = self._found(client, run_id)
        elif self.new_id is not None:
            run_id = self._begun(client, self.new_id)
        is_new = run_id is None
        run_id = run_id or self._create(client, properties)
        lock = lock_on_this_machine(run_id, f"MLflow run {run_id!r}")
        with unlock_if_it_fails(lock):
            if is_new or self.new_id is not None:
                with suppress(ValueError):  # a run that was begun before, and keeps what it has
                    _log_params(client, run_id, properties.hparams)
            if not is_new and client.get_run(run_id).info.status != "RUNNING":
                client.update_run(run_id, status="RUNNING")
            elif not is_new:
                logger.warning(
                    "run %r is still marked as running: its last job was killed; or it runs on another machine, where "
                    "it must be stopped",
                    run_id,
                )
        return MLflowRun(client, run_id, lock, properties.ended)

    def _found(self, client: MlflowClient, run_id: str) -> str | None:
        try:
            if client.get_run(run_id).info.lifecycle_stage != "deleted":
                return run_id
            fate = "was deleted"
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise
            fate = "is gone"
        uri = _without_password(self.config.tracking_uri or get_tracking_uri())
        logger.warning("run %r %s from MLflow %s: starting another", run_id, fate, uri)
        return None

    def _begun(self, client: MlflowClient, new_id: str) -> str | None:
        """Return the run that was made for an identity of ours, after the state was saved or before a failure."""
        runs = client.search_runs([self._experiment(client)], f"tags.`{_OUR_ID}` = '{new_id}'", max_results=1)
        return runs[0].info.run_id if runs else None

    def _create(self, client: MlflowClient, properties: RunConfig) -> str:
        # The hyperparameters as they are nested, too, as JSON.
        tags = chunks("hparams", json.dumps(plain_hparams(properties.hparams)), MAX_TAG_VAL_LENGTH)
        if properties.description is not None:
            tags |= chunks(MLFLOW_RUN_NOTE, encodable(properties.description), MAX_TAG_VAL_LENGTH)
        if self.new_id is not None:
            tags[_OUR_ID] = self.new_id
        started, name = _milliseconds(properties.started), encodable(properties.name)
        return client.create_run(self._experiment(client), started, tags, name).info.run_id

    def _experiment(self, client: MlflowClient) -> str:
        name = self.config.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return client.create_experiment(name)
            except MlflowException:  # another job has just created it
                experiment = client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage == "deleted":
            raise ValueError(f"MLflow experiment {name!r} is deleted: restore it, or choose another name")
        return experiment.experiment_id


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def _expanded(uri: str | None) -> str | None:
    """Return where MLflow's store is, with the home folder for a ``~`` that begins a path."""
    scheme, mark, path = uri.rpartition("///") if uri and ":///" in uri else ("", "", uri)
    return path and f"{scheme}{mark}{os.path.expanduser(path)}"


def _without_password(uri: str) -> str:
    """Return an address that may be shown."""
    return re.sub(r"(//[^/@:]*):[^/@]*@", r"\1:***@", uri)


def _log_params(client: MlflowClient, run_id: str, hparams: Mapping[str, Any]) -> None:
    known = client.get_run(run_id).data.params
    flat = flat_hparams(dict(hparams)).items()
    texts = {valid_key(key): encodable(str(value))[:MAX_PARAM_VAL_LENGTH] for key, value in flat}
    params: list[Any] = [Param(key, text) for key, text in texts.items() if key not in known]
    for start in range(0, len(params), _PARAMS_PER_BATCH):
        client.log_batch(run_id, params=params[start : start + _PARAMS_PER_BATCH])
    if changed := [key for key, text in texts.items() if known.get(key, text) != text]:
        raise ValueError(f"MLflow cannot change parameters, and keeps what it has of {', '.join(changed)}")
