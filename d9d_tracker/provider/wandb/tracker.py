"""Backend that writes to Weights & Biases."""

import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb
from typing_extensions import override

from d9d_tracker.backend import RecordTracker
from d9d_tracker.base import RunConfig
from d9d_tracker.hparams import plain_hparams
from d9d_tracker.log import logger
from d9d_tracker.provider.command_line import command
from d9d_tracker.provider.lock import lock_on_this_machine, unlock_if_it_fails
from d9d_tracker.provider.locked_run import RowRun
from d9d_tracker.provider.names import encodable, storable
from d9d_tracker.provider.rebin import coarsen
from d9d_tracker.record import Histogram, Record

from . import WandbConfig
from .log_file import LogFile

_BINS = 511
_SECONDS_BETWEEN_WRITES = 0.005
_WRITE_TIMEOUT = 20.0
_FINISH_TIMEOUT = 60.0

_RESERVED = ("_step", "_runtime", "_timestamp", "_wandb")
_MODES = ("online", "offline", "disabled")
_OTHER_WORDS = {"run": "online", "shared": "online", "dryrun": "offline"}  # that W&B understands


class WandbRun(RowRun):
    """An open run of Weights & Biases, in which a step is one row, and final when it was flushed.

    A histogram keeps 512 of its edges at most, with its exact minimum, maximum and total; non-finite scalars are stored
    as they are. ``flush`` waits until the rows are on disk in W&B's log, from which its own process uploads them (if
    that dies first, ``wandb sync`` does).

    Attributes:
        sdk: W&B's own run. What is logged there goes with ``commit=False``: its steps are those of the loop.
    """

    def __init__(self, run: wandb.Run, log: LogFile | None, earlier: list[LogFile], lock: int):
        super().__init__(run.id, lock, _RESERVED)
        self.sdk = run
        self._log = log
        self._earlier = earlier
        self._first = run.starting_step if run.resumed else 0  # what an earlier life has stored ends before it
        self._stored = self._first - 1  # last step of which W&B takes nothing more
        self._rewound: int | None = None
        self._unconfirmed: int | None = None

    def rewind(self, step: int) -> None:
        """Take back what an earlier life wrote at ``step`` or later, offline; online, W&B keeps it."""
        super().rewind(step)
        for log in self._earlier:
            log.cut_from(step)
        self._rewound = step
        if self._stored >= step:
            words = (
                "run %r: W&B holds steps %d to %d of an earlier life already and keeps them; what is logged for them "
                "now is not stored"
            )
            logger.warning(words, self.id, step, self._stored)
        self._stored = max(self._stored, step - 1)  # offline, an earlier life's log holds it

    @override
    def add_hparams(self, hparams: Mapping[str, Any]) -> None:
        self.sdk.config.update(storable(plain_hparams(hparams), int64=False), allow_val_change=True)

    @override
    def write_record(self, record: Record) -> None:
        if record.step <= self._stored:
            if self._rewound is not None and self._rewound <= record.step < self._first:
                return  # an earlier life has stored it
            raise ValueError(
                f"{record.name!r} at step {record.step}: W&B takes nothing more for a step that was flushed; flush "
                "between steps"
            )
        super().write_record(record)

    @override
    def cell(self, key: str, value: float | Histogram) -> Any:
        return wandb.Histogram(np_histogram=coarsen(value, _BINS)) if isinstance(value, Histogram) else value

    @override
    def sync(self) -> None:
        for step, row in list(self._rows.items()):
            began = {"_timestamp": self._times[step]} if step in self._times else {}
            self.sdk.log({**began, **row}, step=step, commit=True)
            self._stored = self._unconfirmed = step
            del self._rows[step]
            self._times.pop(step, None)
        self._confirm()

    def _confirm(self) -> None:
        """Wait until W&B's process has written the last row to its log."""
        if self._log is None or self._unconfirmed is None:
            return
        deadline = time.monotonic() + _WRITE_TIMEOUT
        while all(step < self._unconfirmed for step, _ in self._log.new_steps()):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"step {self._unconfirmed} of run {self.id!r} is not in W&B's log after {_WRITE_TIMEOUT:.0f} s: "
                    "free space, or see debug-internal.log beside it"
                )
            time.sleep(_SECONDS_BETWEEN_WRITES / 10)
        self._log.sync()
        self._unconfirmed = None

    @override
    def close_run(self) -> None:
        try:
            self.sync()
        finally:
            self.sdk.finish(exit_code=0 if self._error is None else 1)


class WandbTracker(RecordTracker[WandbConfig]):
    """Opens runs of Weights & Biases; offline, every life of one has a folder of its own, for ``wandb sync``."""

    amends = False
    _shown_by: str | None = None

    @override
    def how_to_open(self) -> str | None:
        return self._shown_by

    @override
    def make_id(self, properties: RunConfig) -> str:
        return os.environ.get("WANDB_RUN_ID") or secrets.token_hex(8)

    @override
    def open_run(self, properties: RunConfig, run_id: str | None) -> WandbRun:
        config = self.config
        mode = config.mode or _mode_of_wandb()
        folder = Path(config.dir or os.environ.get("WANDB_DIR") or ".").expanduser().absolute()
        new_id = run_id or self.new_id or self.make_id(properties)
        lock = lock_on_this_machine(new_id, f"W&B run {new_id!r}")
        with unlock_if_it_fails(lock):
            earlier = sorted(folder.glob(f"*wandb/offline-run-*/run-{new_id}.wandb"))
            if run_id and mode == "offline" and not earlier:
                logger.warning("run %r: W&B's earlier files are not in %s: going on without them", run_id, folder)
            folder.mkdir(parents=True, exist_ok=True)
            # The only run is also `wandb.run`, which people's own code calls.
            is_only = wandb.setup().most_recent_active_run is None
            run = wandb.init(
                project=config.project,
                entity=config.entity,
                group=config.group,
                tags=config.tags or None,
                mode=mode,
                dir=folder,
                id=new_id,
                resume=None if mode != "online" else "must" if run_id else "allow",
                reinit="default" if is_only else "create_new",
                name=encodable(properties.name),
                notes=encodable(properties.description),
                config=storable(plain_hparams(properties.hparams), int64=False),
                settings=wandb.Settings(
                    x_transaction_log_flush_interval=_SECONDS_BETWEEN_WRITES, finish_timeout=_FINISH_TIMEOUT
                ),
            )
            self._shown_by = run.url or (
                command("wandb", "sync", run.dir.removesuffix("/files")) if mode == "offline" else None
            )
            log = None if mode == "disabled" else LogFile(Path(run.settings.sync_file))
            return WandbRun(run, log, [LogFile(path) for path in earlier], lock)


def _mode_of_wandb() -> Any:
    said = os.environ.get("WANDB_MODE") or wandb.setup().settings.mode  # which `wandb offline` sets
    if (mode := _OTHER_WORDS.get(said, said)) not in _MODES:
        raise ValueError(f"WANDB_MODE={said!r} is not one of {', '.join(_MODES)}; or set the configuration's mode")
    return mode
