"""The writer's process, ``python -m d9d_tracker.writer``: has a backend open, and does what the training asks."""

import logging
import os
import sys
import threading
import time
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from typing import Any

from d9d_tracker.backend import open_sink
from d9d_tracker.bare_run import BareRun
from d9d_tracker.base import RunConfig
from d9d_tracker.hparams import plain_hparams
from d9d_tracker.log import logger
from d9d_tracker.points import Points
from d9d_tracker.provider.lock import unlock

from .portable import load
from .predecessor import ORPHAN_SECONDS, lock_in_time
from .wire import from_error, receive, send, to_error

_GLANCE_SECONDS = 0.5
_SIGN_SECONDS = 0.2


class Writer:
    """A backend's run, and the pipe to the training, the process ``parent``.

    Once that is gone, what had arrived is still written and the backend closed, within 20 seconds. While it is there,
    the backend may take as long as the training waits for it.
    """

    def __init__(self, connection: Connection, parent: int):
        self._connection = connection
        self._parent = parent
        self._sending = threading.Lock()
        self._said_at = 0.0
        self._stack = ExitStack()
        self._run: Any = None
        self._is_over = False
        threading.Thread(target=self._end_in_time, daemon=True).start()

    def serve(self) -> None:
        """Do what is asked, until the run is closed or nobody is there to ask."""
        try:
            while not self._is_over:
                while not self._connection.poll(_GLANCE_SECONDS):
                    if self._is_orphan():
                        raise EOFError
                self._answer(*receive(self._connection))
        except (EOFError, OSError):
            self._close_run(ConnectionError("the training has ended without closing the run"))

    def say(self, **answer: Any) -> None:
        """Answer the training, if it is still there."""
        with self._sending, suppress(OSError):
            send(self._connection, answer)

    def _give_a_sign(self, _: bool) -> None:
        """Say, at times, that the backend is at work."""
        if time.monotonic() - self._said_at > _SIGN_SECONDS:
            self._said_at = time.monotonic()
            self.say(alive=True)

    def _answer(self, request: dict[str, Any], points: Points | None) -> None:
        try:
            if printed := request.pop("printed", ""):
                sys.stdout.write(printed)
            answer = getattr(self, f"_{request.pop('call')}")(points, **request)
        except BaseException as error:  # SystemExit too: an action may raise anything
            self.say(**from_error(error))
        else:
            self.say(done=True, **(answer or {}))

    def _open(
        self, _: Any, types: Any, config: Any, properties: Any, lock: str, arguments: Any, python_path: Any, state: Any
    ) -> dict[str, Any]:
        # What an SDK asks its process for is what the training would say.
        sys.argv[:] = arguments
        os.environ.pop("PYTHONPATH")
        os.environ |= {} if python_path is None else {"PYTHONPATH": python_path}
        self._stack.callback(unlock, lock_in_time(lock))
        tracker_type, config_type = map(load, types)
        tracker = tracker_type.from_config(config_type.model_validate(config))
        tracker.training = self._parent
        if tracker.shows_terminal:
            # What the training prints is on its terminal already; the SDK hears it from here.
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until this process ends
        if state is not None:
            tracker.load_state_dict(state)
        self._run = self._stack.enter_context(open_sink(tracker, RunConfig(**properties)))
        self._run.on_progress = self._give_a_sign
        return {"state": tracker.state_dict()}

    def _write_points(self, points: Points) -> dict[str, Any]:
        taken = self._run.write_points(points)
        return {
            "accepted": taken.accepted,
            "failures": taken.failures,
            "refused": [[one.name, one.step, from_error(one.error)] for one in taken.refused],
            "stopped": None if taken.error is None else from_error(taken.error),
        }

    def _rewind(self, _: Any, step: int) -> None:
        self._run.rewind(step)

    def _add_hparams(self, _: Any, hparams: dict[str, Any]) -> None:
        self._run.add_hparams(hparams)

    def _call(self, _: Any, action: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return plain_hparams({"result": load(action)(BareRun([self._run]), **arguments)})

    def _flush(self, _: Any) -> None:
        self._run.flush()

    def _close(self, _: Any, failure: dict[str, Any] | None) -> None:
        self._close_run(None if failure is None else to_error(failure))

    def _close_run(self, error: BaseException | None) -> None:
        self._is_over = True
        self._stack.__exit__(None if error is None else type(error), error, None)

    def _is_orphan(self) -> bool:
        return os.getppid() != self._parent

    def _end_in_time(self) -> None:
        while not self._is_orphan():
            time.sleep(_GLANCE_SECONDS)
        time.sleep(ORPHAN_SECONDS)
        os._exit(1)


def main() -> None:
    """Serve the training that has started this process."""
    connection, parent = Connection(int(sys.argv[1])), int(sys.argv[2])
    writer = Writer(connection, parent)
    handler = logging.Handler()  # the training says what is said here
    handler.emit = lambda record: writer.say(log=record.levelno, words=record.getMessage())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    writer.serve()


if __name__ == "__main__":
    main()
