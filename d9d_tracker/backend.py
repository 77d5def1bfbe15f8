"""What the backends of this package share: a tracker that opens one sink, and closes it on every way out."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self

from .bare_run import BareRun
from .base import BaseTracker, RunConfig, TConfig, check_properties
from .sink import LoopSink, RecordRun, Sink

__all__ = ["RecordRun", "RecordTracker", "open_sink"]


class RecordTracker(BaseTracker[TConfig]):
    """A tracker whose ``open`` closes its run on every way out.

    ``open`` starts a new run each time, except that the first ``open`` after ``load_state_dict`` re-attaches to the
    run of the state.

    Args:
        config: The backend's configuration.

    Attributes:
        bare_run: What a loop logs to where no accumulator stands in front.
    """

    config: TConfig
    bare_run: type[BareRun] = BareRun

    def __init__(self, config: TConfig):
        self.config = config

    @classmethod
    def from_config(cls, config: TConfig) -> Self:
        """Create the tracker its configuration describes.

        Args:
            config: The backend's configuration.
        """
        return cls(config)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, before ``open``.

        Args:
            state_dict: A state of the same backend.

        Raises:
            ValueError: If it is not such a state; the tracker is then unchanged.
        """
        run_id = state_dict.get("run_id", "")
        if run_id is not None and not (isinstance(run_id, str) and run_id):
            raise ValueError(
                f"the state of a {type(self).__name__} has a 'run_id' that is text or None, not {run_id!r}"
            )
        super().load_state_dict({**state_dict, "run_id": run_id})

    @contextmanager
    def open(self, properties: RunConfig) -> Iterator[BareRun]:
        """Open a run, or re-attach to the one named by the loaded state; close it on leaving.

        Args:
            properties: Name, description and hyperparameters of the run.

        Yields:
            The open run.
        """
        check_properties(properties)
        resumed = self.resume_id is not None
        with self.open_sink(properties) as sink:
            yield self.bare_run([sink], resumed)

    @contextmanager
    def open_sink(self, properties: RunConfig) -> Iterator[RecordRun]:
        """Open a run as ``open`` does, for whoever hands it finished points.

        An exception that leaves the block is the one that surfaces, also when closing the run fails as well: that
        failure is then a note on it.

        Args:
            properties: Name, description and hyperparameters of the run.

        Yields:
            The backend's run.
        """
        if self.resume_id is None and self.new_id is None:
            self.new_id = self.make_id(properties)
        run = self.open_run(properties, self.resume_id)
        self.run_id, self.resume_id, self.new_id = run.id, None, None
        try:
            yield run
        except BaseException as error:
            try:
                run.close(error)
            except Exception as closing_error:
                error.add_note(f"closing run {run.id!r} failed as well: {closing_error!r}")
            raise
        else:
            run.close()

    @abstractmethod
    def open_run(self, properties: RunConfig, run_id: str | None) -> RecordRun:
        """Start a run, by the name of ``new_id`` if there is one, or re-attach to the one of that id."""


def open_sink(tracker: BaseTracker[Any], properties: RunConfig) -> AbstractContextManager[Sink]:
    """Open the run of any tracker for finished points.

    Args:
        tracker: The tracker.
        properties: Name, description and hyperparameters of the run.
    """
    return tracker.open_sink(properties) if isinstance(tracker, RecordTracker) else _open_loop(tracker, properties)


@contextmanager
def _open_loop(tracker: BaseTracker[Any], properties: RunConfig) -> Iterator[Sink]:
    with tracker.open(properties) as run:
        yield LoopSink(run)
