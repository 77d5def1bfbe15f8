"""A backend's run as a delivery's thread has it: opened, called while others see for how long, and closed."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from d9d_tracker.bare_run import BareRun
from d9d_tracker.log import logger
from d9d_tracker.points import Points
from d9d_tracker.sink import ATTEMPTS, Refusal, Sink, SinkLostError, is_of_code

from .outbound import Call, Queued
from .report import DeliveryReport

Opener = Callable[[], AbstractContextManager[Sink]]


class StoppedError(Exception):
    """The thread is to leave: the points behind are the backlog's."""


class OwnedSink:
    """Only one thread calls its methods.

    Attributes:
        sink: The backend's, once it is open and rewound; else None.
        rewind_to: Step from which on it must hold nothing when it is opened next; None if that is as it may be.
        is_stopped: Whether the thread is to leave, also out of the middle of a window.
        called_at: Since when the thread has been inside the backend; None if it is not.
    """

    def __init__(self, name: str, open_backend: Opener, report: DeliveryReport, rewind_to: int | None):
        self.sink: Sink | None = None
        self.rewind_to = rewind_to
        self.is_stopped = False
        self._name, self._open_backend, self._report = name, open_backend, report
        self._context: AbstractContextManager[Sink] | None = None
        self._entered: Sink | None = None
        self.called_at: float | None = time.monotonic()
        self._said_refused: set[str] = set()
        self._has_said_hparams = False

    def open(self) -> Sink:
        """Open the backend and take back what the loaded state does not hold; after a failure, go on where it was."""
        with self._inside():
            if self._context is None or self._entered is None:
                context = self._open_backend()
                self._entered = context.__enter__()
                self._entered.on_progress = self._note_progress
                self._context = context
            if self.rewind_to is not None:
                self._entered.rewind(self.rewind_to)
        self.sink, self.rewind_to = self._entered, None
        return self.sink

    def deliver(self, sink: Sink, window: Queued, points: Points) -> None:
        """Deliver what the backend has not taken of a window, then make all of it durable."""
        with self._inside():
            error = self._add_hparams(sink, window, points)
            if window.accepted < window.contents.records:
                taken = sink.write_points(Points.of(points[window.accepted :]) if window.accepted else points)
                window.accepted += taken.accepted
                for refusal in taken.refused:
                    self._note_refused(window, refusal)
                if taken.error is not None:
                    self._report.failures += taken.failures - 1
                    raise taken.error
                self._report.failures += taken.failures
                if window.accepted < window.contents.records:
                    of = f"{window.accepted} of {window.contents.records}"
                    words = f"write_points has taken {of} points and says no error"
                    raise RuntimeError(words)
            self.called_at = time.monotonic()
            sink.flush()
            if error is not None:
                raise error

    def make_call(self, sink: Sink, call: Call) -> None:
        """Do what is to be done with the backend's run; what it raises is the future's."""
        if call.set_running_or_notify_cancel():
            with self._inside():
                try:
                    call.set_result(sink.call(call.action, call.arguments, BareRun([sink])))
                except BaseException as error:  # SystemExit too: what the action does is its own
                    call.set_exception(error)

    def close(self, error: BaseException | None) -> None:
        """Close the backend's run, if it is open, with what has ended it."""
        context, self._context, self._entered = self._context, None, None
        if context is not None:
            with self._inside():
                try:
                    context.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
                except BaseException as closing_error:
                    if closing_error is not error:
                        logger.error("the backend failed to close: %r (%s)", closing_error, self._name)

    def close_to_reopen(self, error: BaseException | None) -> None:
        """Close the run, to be opened anew."""
        self.close(error)
        self.sink = None

    @contextmanager
    def _inside(self) -> Iterator[None]:
        self.called_at = time.monotonic()
        try:
            yield
        finally:
            self.called_at = None

    def _note_progress(self, has_done_something: bool) -> None:
        if self.is_stopped:
            raise StoppedError
        if has_done_something:
            self.called_at = time.monotonic()

    def _add_hparams(self, sink: Sink, window: Queued, points: Points) -> Exception | None:
        """Add those of a window; return what the backend raised if it is to be asked again, after the points.

        An error of Python's own is their fault, not that of a backend that is down, if it comes again and again though
        the points behind are taken.
        """
        if not points.hparams or window.has_sent_hparams:
            return None
        try:
            sink.add_hparams(points.hparams)
        except (StoppedError, SinkLostError):
            raise
        except Exception as error:
            is_final = isinstance(error, NotImplementedError | TypeError | ValueError)
            if is_of_code(error) and 0 < window.accepted == window.contents.records:
                window.failures += 1
                is_final = is_final or window.failures >= ATTEMPTS
            if not is_final:
                return error
            if not self._has_said_hparams:
                self._has_said_hparams = True
                logger.warning("hyperparameters that were added later did not reach %s: %r", self._name, error)
        window.has_sent_hparams = True
        return None

    def _note_refused(self, window: Queued, refusal: Refusal) -> None:
        window.refused[refusal.name] += 1
        if refusal.name not in self._said_refused:
            self._said_refused.add(refusal.name)
            words = "the backend refused %s at step %d: %r; if it refuses more of this series, the report counts them"
            logger.error(words, *refusal)
