"""Starts small jobs of several processes on this host, and stops every one of them."""

import atexit
import gc
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from d9d_tracker import AccumulatingTracker, AccumulatorConfig, Histogram, Record, RunConfig
from d9d_tracker.testing import RecordingTracker
from tests.ends import end_with_interpreter

_START = multiprocessing.get_context("forkserver")
NAME = RunConfig(name="job")
LOCALHOST = "127.0.0.1"


@dataclass
class Outcome:
    """What became of one rank."""

    result: Any = None
    error: str | None = None
    log: list[str] = field(default_factory=list)
    exit_code: int | None = None

    def said(self, words: str) -> bool:
        return any(words in line for line in self.log)


class Job:
    """A running job.

    Args:
        program: Called as ``program(rank, folder, *arguments)`` on every rank, in torch.distributed.
        size: Number of ranks.
        folder: Where the ranks leave files.
        arguments: What else the program is called with.
        rendezvous: Where the ranks meet, as a URL or as ``agent:PORT``, a TCP store of the test's; a file by default.
    """

    def __init__(
        self, program: Callable[..., Any], size: int, folder: Path, *arguments: Any, rendezvous: str | None = None
    ):
        self.folder = folder
        number = len(list(folder.glob("rendezvous*")))
        rendezvous = rendezvous or f"file://{folder / f'rendezvous-{number}-{time.monotonic_ns()}'}"
        self._results = [folder / f"result-{number}-{rank}" for rank in range(size)]
        self.processes = [
            _START.Process(target=_run, args=(program, rank, size, folder, rendezvous, self._results[rank], arguments))
            for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *raised: object) -> None:
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            process.join()

    def signal(self, rank: int, number: int) -> None:
        os.kill(self.processes[rank].pid, number)

    def wait_for(self, name: str, seconds: float = 180.0) -> None:
        """Wait until a rank has left a file in the folder."""
        deadline = time.monotonic() + seconds
        while not (self.folder / name).exists():
            assert time.monotonic() < deadline, f"{name} did not appear"
            time.sleep(0.01)

    def outcomes(self, seconds: float = 240.0) -> list[Outcome]:
        """Wait for the processes to end, and return what became of them; a process that does not end has no result."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.1, deadline - time.monotonic()))
        outcomes = []
        for process, path in zip(self.processes, self._results, strict=True):
            outcome = pickle.loads(path.read_bytes()) if path.exists() else Outcome()
            outcome.exit_code = process.exitcode
            outcomes.append(outcome)
        return outcomes


def run_job(program: Callable[..., Any], size: int, folder: Path, *arguments: Any) -> list[Outcome]:
    """Run a program on several ranks, have all of them succeed, and return what became of them."""
    with Job(program, size, folder, *arguments) as job:
        outcomes = job.outcomes()
    for rank, outcome in enumerate(outcomes):
        assert outcome.error is None, f"rank {rank}: {outcome.error}"
        assert outcome.exit_code == 0, f"rank {rank}: exit code {outcome.exit_code}; {outcome.log}"
    return outcomes


class _Log(logging.Handler):
    def __init__(self, lines: list[str]):
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())


def _run(program, rank, size, folder, rendezvous, result, arguments) -> None:
    gc.freeze()  # what it was forked with is not looked through, and not taken apart at its end, which takes a second
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    outcome = Outcome()
    logger = logging.getLogger("d9d_tracker")
    logger.setLevel(logging.INFO)
    logger.addHandler(_Log(outcome.log))
    if size > 1 and rendezvous.startswith("agent:"):
        store = dist.TCPStore(LOCALHOST, int(rendezvous.removeprefix("agent:")), None, False)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    elif size > 1:
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=size)
    try:
        outcome.result = program(rank, folder, *arguments)
    except BaseException:
        outcome.error = traceback.format_exc()
    finally:
        temporary = result.with_suffix(".tmp")
        temporary.write_bytes(pickle.dumps(outcome))
        temporary.rename(result)
        if dist.is_initialized():
            dist.destroy_process_group()
        status = int(outcome.error is not None)
        if rank < 2:
            end_with_interpreter(status)
        # The others are of rank 1's kind: what is due at an exit is done, and nothing taken apart, which takes long.
        threading._shutdown()
        atexit._run_exitfuncs()
        os._exit(status)


def tracker(folder: Path, group: Any = None, on_nonfinite: Any = None, **config: Any) -> AccumulatingTracker:
    """Return a tracker over the recording backend, which only remembers something on rank 0."""
    defaults = {
        "device": "cpu",
        "backlog_dir": folder / "backlog",
        "sync_every": 10,
        "max_scalars": 32,
        "max_histograms": 8,
        "flush_timeout": 20.0,
        "distributed_timeout": 20.0,
    }
    return AccumulatingTracker(RecordingTracker(), AccumulatorConfig(**{**defaults, **config}), group, on_nonfinite)


def content(one: AccumulatingTracker, rewritten: bool = False) -> dict:
    """Return what the backend holds, see ``content_of``."""
    return content_of([record for run in one._tracker.runs.values() for record in run.records], rewritten)


def content_of(records: list[Record], rewritten: bool = False) -> dict:
    """Return records by name, context and step.

    Args:
        records: In the order they were written.
        rewritten: Whether a point may be there twice, because a flush came in the middle of its step.
    """
    found: dict = {}
    for record in records:
        key = (record.name, tuple(sorted(record.context.items())), record.step)
        assert rewritten or key not in found, f"{key} was written twice"
        found[key] = histogram(record.value) if isinstance(record.value, Histogram) else record.value
    return found


def histogram(value: Histogram) -> tuple:
    """Return everything in a histogram, in a form that compares."""
    return (
        value.edges.tolist(), value.counts.tolist(), value.sum, value.sum_squares, value.min, value.max,
        value.zeros, value.nan, value.posinf, value.neginf,
    )  # fmt: skip
