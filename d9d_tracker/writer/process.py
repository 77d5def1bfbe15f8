"""The training's end of the pipe to a writer: a run whose backend is open in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe
from typing import Any, Self

from typing_extensions import override

from d9d_tracker.base import BaseTracker, BaseTrackerRun, RunConfig
from d9d_tracker.hparams import plain_hparams
from d9d_tracker.log import logger
from d9d_tracker.points import Points
from d9d_tracker.sink import Refusal, Sink, SinkLostError, Taken

from .portable import obstacle, path_of
from .terminal import Terminal
from .wire import from_error, receive, send, to_error

_GLANCE_SECONDS = 0.2
_EXIT_SECONDS = 5.0


class ProcessSink(Sink):
    """A backend's run in a process of its own, opened there; left, as a context, it is closed.

    The tracker here is not opened, and its state becomes that of the one there. ``lock`` is what the run is called on
    this machine: a writer waits for that of a killed training. ``come_here`` is told why an action can only be done in
    this process; the backend is to be opened here next. What the backend raises, its nearest built-in type is here.
    """

    def __init__(self, backend: BaseTracker[Any], properties: RunConfig, lock: str, come_here: Callable[[str], None]):
        self._backend = backend
        self._terminal: Terminal | None = None
        self._come_here = come_here
        ours, theirs = Pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        command = [sys.executable, "-P", "-m", "d9d_tracker.writer", str(theirs.fileno()), str(os.getpid())]
        with theirs:
            self._writer = subprocess.Popen(  # a Ctrl-C of the training's terminal is not for the writer
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=environment, start_new_session=True
            )
        self._connection: Connection | None = ours
        order = {
            "types": [path_of(type(backend)), path_of(type(backend.config))],
            "config": backend.config.model_dump(mode="json"),
            "properties": {**properties.model_dump(exclude={"hparams"}), "hparams": plain_hparams(properties.hparams)},
            "lock": lock,
            "arguments": sys.argv,
            "python_path": os.environ.get("PYTHONPATH"),
            "state": None if backend.resume_id is None and backend.new_id is None else backend.state_dict(),
        }
        try:
            opened = self._ask({"call": "open", **order})
        except BaseException:
            self._close_pipe()
            raise
        self._terminal = Terminal() if backend.shows_terminal else None
        backend.load_state_dict(opened["state"])
        backend.resume_id = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.close(error)

    @override
    def write_points(self, points: Points) -> Taken:
        answer: dict[str, Any] = {}
        try:
            for answer in self._answers({"call": "write_points"}, points):
                self.on_progress(bool(answer))
        except BaseException:
            self._close_early()
            raise
        refused = [Refusal(name, step, to_error(error)) for name, step, error in answer["refused"]]
        stopped = answer["stopped"]
        return Taken(answer["accepted"], refused, answer["failures"], None if stopped is None else to_error(stopped))

    @override
    def rewind(self, step: int) -> None:
        self._ask({"call": "rewind", "step": step})

    @override
    def add_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._ask({"call": "add_hparams", "hparams": plain_hparams(hparams)})

    @override
    def takes(self, action: Callable[..., object], arguments: Mapping[str, object]) -> bool:
        why = obstacle(action, arguments)
        if why is not None:
            self._come_here(why)
        return why is None

    @override
    def call(self, action: Callable[..., Any], arguments: Mapping[str, object], run: BaseTrackerRun) -> Any:
        return self._ask({"call": "call", "action": path_of(action), "arguments": arguments})["result"]

    @override
    def flush(self) -> None:
        self._ask({"call": "flush"})

    def close(self, error: BaseException | None = None) -> None:
        """Have the writer close the backend's run and end, if it is still there, with what ended the run."""
        if self._connection is not None:
            try:
                self._ask({"call": "close", "failure": None if error is None else from_error(error)})
            finally:
                self._close_pipe(_EXIT_SECONDS)

    def _close_early(self) -> None:
        """Have the writer close the backend once it is done, without waiting for it."""
        if self._connection is not None:
            with suppress(OSError):
                send(self._connection, {"call": "close", "failure": None})
        self._close_pipe()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        return list(self._answers(request))[-1]

    def _answers(self, request: dict[str, Any], points: Points | None = None) -> Iterator[dict[str, Any]]:
        """Yield what the writer answers, and an empty answer five times a second while it does not."""
        printed = "" if self._terminal is None else self._terminal.take()
        with self._alive() as connection:
            send(connection, request | ({"printed": printed} if printed else {}), points)
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
            raise SinkLostError(f"the writer of {name} has died")
        try:
            yield self._connection
        except (EOFError, OSError) as error:
            self._close_pipe(_EXIT_SECONDS)
            raise SinkLostError(f"the writer of {name} has died (code={self._writer.returncode})") from error

    def _close_pipe(self, timeout: float = 0) -> None:
        if self._terminal is not None:
            self._terminal.close()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        with suppress(subprocess.TimeoutExpired):
            self._writer.wait(timeout)
