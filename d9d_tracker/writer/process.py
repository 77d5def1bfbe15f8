"""The training's end of the pipe to a writer: a run whose backend is open in a process of its own."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe
from typing import Any

from typing_extensions import override

from d9d_tracker.backend import RecordRun
from d9d_tracker.base import BaseTracker, RunConfig
from d9d_tracker.delivery.report import DeliveryReport
from d9d_tracker.delivery.window_queue import Queued
from d9d_tracker.delivery.write_window import Caller
from d9d_tracker.points import Points
from d9d_tracker.provider.hparams import plain_hparams
from d9d_tracker.record import Record

from .wire import from_error, receive, send, to_error

logger = logging.getLogger("d9d_tracker")

_GLANCE_SECONDS = 0.2
_EXIT_SECONDS = 5.0


def is_portable(backend: BaseTracker[Any]) -> bool:
    """Return whether another process could make this backend.

    It must be able to import the types, and to get the whole configuration as JSON: a ``SecretStr`` is masked there.
    """
    config = backend.config
    if config is None or any(
        kind.__module__ == "__main__" or "<locals>" in kind.__qualname__ for kind in (type(backend), type(config))
    ):
        return False
    try:
        return type(config).model_validate_json(config.model_dump_json()) == config
    except ValueError:
        return False


@contextmanager
def open_in_process(backend: BaseTracker[Any], properties: RunConfig, lock: str) -> Iterator["ProcessRun"]:
    """Open a backend's run in a process of its own, and close it on leaving.

    Args:
        backend: The backend's tracker; it is not opened, and its state becomes that of the one in the other process.
        properties: Name, description and hyperparameters of the run.
        lock: What the run is called on this machine: what the writer of a killed training still has to do, the next
            writer waits for.

    Yields:
        The run.

    Raises:
        Exception: What the backend raised on opening, or its nearest built-in type.
    """
    run = ProcessRun(backend, properties, lock)
    run.begin()
    try:
        yield run
    except BaseException as error:
        run.close(error)
        raise
    else:
        run.close()


class ProcessRun(RecordRun):
    """A run of a backend that lives in a writer's process, which is started again when it dies.

    Args:
        backend: The backend's tracker.
        properties: Name, description and hyperparameters of the run.
        lock: What the run is called on this machine.
    """

    def __init__(self, backend: BaseTracker[Any], properties: RunConfig, lock: str):
        super().__init__(backend.run_id)
        self._backend = backend
        self._order = {
            "types": [f"{kind.__module__}:{kind.__qualname__}" for kind in (type(backend), type(backend.config))],
            "config": json.loads(backend.config.model_dump_json()),
            "properties": {**properties.model_dump(exclude={"hparams"}), "hparams": plain_hparams(properties.hparams)},
            "lock": lock,
        }
        self._writer: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"{type(self._backend).__name__}'s run is in a process of its own, where {name!r} cannot be reached from "
            "here; set accumulator.writer to 'thread' for that"
        )

    def begin(self) -> None:
        """Start the writer's process and have it open the backend's run."""
        ours, theirs = Pipe()
        goes_on = self._writer is not None or self._backend.resume_id is not None
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        command = [sys.executable, "-P", "-m", "d9d_tracker.writer", str(theirs.fileno()), str(os.getpid())]
        with theirs:
            self._writer = subprocess.Popen(  # a Ctrl-C of the training's terminal is not for the writer
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=environment, start_new_session=True
            )
        self._connection = ours
        state = self._backend.state_dict() if goes_on and self._backend.run_id is not None else None
        try:
            opened = self._ask({"call": "open", **self._order, "state": state})
        except BaseException:
            self._hang_up()
            raise
        self._backend.load_state_dict(opened["state"])
        self._backend.resume_id = None
        self.id = self._backend.run_id or self.id

    def write_window(self, head: Queued, caller: Caller, report: DeliveryReport) -> None:
        """Have the writer write what its backend has not accepted of a window.

        Args:
            head: The window; a writer that was started again gets all of it. What is refused is taken out.
            caller: Knows since when the backend is at work.
            report: Counts what is refused.

        Raises:
            Exception: What the backend raised, if it is down; ``OSError`` if the writer has died.
        """
        if self._connection is None:
            self.begin()
            self.rewind(head.contents.first)
            head.accepted = 0
        assert head.records is not None
        before = head.accepted
        rest = Points.of(head.records[before:] if before else head.records)
        for answer in self._answers({"call": "write_window"}, rest) if rest else ():
            if caller.stops:
                self._leave_early()
                return
            if answer:
                caller.enter()
            if "accepted" in answer:
                head.accepted = before + answer["accepted"]
                report.failures += answer["failures"]
            if "order" in answer:
                sent = list(rest)
                report.refused.update(sent[place].name for place in answer["refused"])
                head.records = [*head.records[:before], *(sent[place] for place in answer["order"])]

    @override
    def write_record(self, record: Record) -> None:
        self._ask({"call": "write"}, Points.of([record]))

    @override
    def rewind(self, step: int) -> None:
        super().rewind(step)
        self._ask({"call": "rewind", "step": step})

    @override
    def add_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._ask({"call": "add_hparams", "hparams": plain_hparams(hparams)})

    @override
    def sync(self) -> None:
        self._ask({"call": "flush"})

    @override
    def release(self) -> None:
        if self._connection is not None:
            try:
                self._ask({"call": "close", "failure": None if self._error is None else from_error(self._error)})
            finally:
                self._hang_up(_EXIT_SECONDS)

    def _leave_early(self) -> None:
        """Have the writer close the backend once it is done, without waiting for it."""
        if self._connection is not None:
            with suppress(OSError):
                send(self._connection, {"call": "close", "failure": None})
        self._hang_up()

    def _ask(self, request: dict[str, Any], points: Points | None = None) -> dict[str, Any]:
        return list(self._answers(request, points))[-1]

    def _answers(self, request: dict[str, Any], points: Points | None) -> Iterator[dict[str, Any]]:
        """Yield what the writer answers, and an empty answer five times a second while it does not."""
        with self._alive() as connection:
            send(connection, request, points)
        answer: dict[str, Any] = {}
        while not answer.get("done"):
            answer = {}
            with self._alive() as connection:
                if connection.poll(_GLANCE_SECONDS):
                    answer, _ = receive(connection)
            if "log" in answer:
                logger.log(answer["log"], "%s", answer["words"])
            elif "error" in answer:
                raise to_error(answer)
            else:
                yield answer

    @contextmanager
    def _alive(self) -> Iterator[Connection]:
        name = type(self._backend).__name__
        if self._connection is None:
            raise ConnectionError(f"the writer of {name} has died")
        try:
            yield self._connection
        except (EOFError, OSError) as error:
            self._hang_up(_EXIT_SECONDS)
            code = None if self._writer is None else self._writer.returncode
            raise ConnectionError(f"the writer of {name} has died ({code=})") from error

    def _hang_up(self, timeout: float = 0) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._writer is not None:
            with suppress(subprocess.TimeoutExpired):
                self._writer.wait(timeout)
