"""The contract between a training loop and a backend."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from . import at_exit
from .config import TrackerConfig
from .errors import TrackerTypeError
from .record import Histogram, Record

if TYPE_CHECKING:
    import torch


class RunConfig(BaseModel):
    """What a run is called and what it was started with.

    Attributes:
        name: Display name of the run.
        description: Free text shown beside the run, if any.
        hparams: Hyperparameters, nested as deep as you like.
        started: When it began, in seconds since the epoch, for a run that is carried over from elsewhere; now by
            default. MLflow, TensorBoard, Trackio and JSON files store it.
        ended: When it ended, likewise. MLflow and JSON files store it.
    """

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1)
    description: str | None = None
    hparams: dict[str, Any] = Field(default_factory=dict)
    started: float | None = None
    ended: float | None = None


def check_properties(properties: object) -> None:
    """Refuse what ``open`` is called with by mistake: a bare name, for one.

    Args:
        properties: What was given as ``RunConfig``.

    Raises:
        TrackerTypeError: If it is none.
    """
    if not isinstance(properties, RunConfig):
        raise TrackerTypeError(f"open takes a RunConfig, not {properties!r}; pass RunConfig(name='...')")


class Handle:
    """A series for a module to hold.

    Args:
        run: Where it logs.
        name: Name of the series.
        context: Tags of the series; merged with the persistent context, over which they win.
    """

    def __init__(self, run: "BaseTrackerRun", name: str, context: dict[str, str] | None):
        self.run = run
        self.name = name
        self.context = context

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the handle itself: a copy of a module that holds it logs to the same series."""
        return self


class ScalarHandle(Handle):
    """A scalar series for a module to hold: see ``BaseTrackerRun.scalar_series``."""

    def scalar(self, value: "float | torch.Tensor") -> None:
        """Log one number.

        Args:
            value: A number, or a tensor of one element.
        """
        self.run.scalar(self.name, value, self.context)


class BinsHandle(Handle):
    """A series of distributions for a module to hold: see ``BaseTrackerRun.bins_series``."""

    def bins(self, values: "torch.Tensor") -> None:
        """Log the distribution of a population.

        Args:
            values: The population to bin: any shape, any real dtype.
        """
        self.run.bins(self.name, values, self.context)


class BaseTrackerRun(ABC):
    """One open run: where values are logged.

    A backend implements the four abstract methods. The others have defaults that lose nothing.
    """

    _leave: Callable[..., Any] | None = None  # what `finish` calls, for a run that `BaseTracker.start` has opened

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the run itself: a copy of a module that logs, of its weights' average for example, logs to it too."""
        return self

    def __reduce__(self) -> Any:
        """Refuse to be pickled."""
        raise TrackerTypeError(
            "an open run cannot be saved or sent to another process: save the state_dict() of the tracker and of the "
            "module that holds the run"
        )

    @abstractmethod
    def set_step(self, step: int) -> None:
        """Set the step that the following values belong to.

        Args:
            step: Index of the training step; never smaller than the one before.
        """

    @abstractmethod
    def set_context(self, context: dict[str, str]) -> None:
        """Replace the persistent context: tags attached to all following values.

        Args:
            context: Tag names and values, for example ``{"stage": "train"}``.
        """

    def get_context(self) -> dict[str, str]:
        """Return the persistent context. A run that does not remember it returns an empty one."""
        return {}

    @contextmanager
    def context(self, **tags: str) -> Iterator[None]:
        """Add tags to the persistent context within a block; what was set before is restored after it.

        Args:
            **tags: Tag names and values, for example ``stage="eval"``.
        """
        before = self.get_context()
        self.set_context({**before, **tags})
        try:
            yield
        finally:
            self.set_context(before)

    def add_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Add hyperparameters to those that the run was opened with, as far as the backend can.

        Args:
            hparams: Hyperparameters, nested as deep as you like.

        Raises:
            NotImplementedError: If the backend takes them on opening only.
        """
        raise NotImplementedError(f"{type(self).__name__} takes hyperparameters on opening only")

    def finish(self, error: BaseException | None = None) -> None:
        """Close a run that ``BaseTracker.start`` has opened. Closing again does nothing.

        Args:
            error: What ended the run, if it failed.
        """
        leave, self._leave = self._leave, None
        if leave is not None:
            at_exit.remove(self)
            leave(type(error) if error else None, error, error.__traceback__ if error else None)

    @abstractmethod
    def scalar(self, name: str, value: "float | torch.Tensor", context: dict[str, str] | None = None) -> None:
        """Log one number.

        Args:
            name: Name of the series.
            value: A number, or a tensor of one element.
            context: Tags for this value alone; merged with the persistent context, over which they win.
        """

    @abstractmethod
    def bins(self, name: str, values: "torch.Tensor", context: dict[str, str] | None = None) -> None:
        """Log the distribution of a population.

        Args:
            name: Name of the series.
            values: The population to bin: any shape, any real dtype.
            context: Tags for this value alone; merged with the persistent context, over which they win.
        """

    def scalars(self, values: "Mapping[str, float | torch.Tensor]", context: dict[str, str] | None = None) -> None:
        """Log several numbers.

        Args:
            values: Name and value of each series.
            context: Tags for these values alone; merged with the persistent context, over which they win.
        """
        for name, value in values.items():
            self.scalar(name, value, context)

    def log_at(
        self,
        step: int,
        values: "Mapping[str, float | torch.Tensor | Histogram]",
        context: Mapping[str, Any] | None = None,
    ) -> None:
        """Log numbers and histograms of a step that may be over.

        Args:
            step: The step.
            values: Name and value of each series.
            context: Tags; merged with the persistent context, over which they win.

        Raises:
            ValueError: If the backend takes nothing for a step that is over.
        """
        tags = {**self.get_context(), **(context or {})}
        finished = {name: one if isinstance(one, Histogram) else float(one) for name, one in values.items()}
        self.write(Record(name, step, tags, value) for name, value in finished.items())

    def scalar_series(self, name: str, context: dict[str, str] | None = None) -> ScalarHandle:
        """Return a handle of a scalar series: for blocks that share compiled code, each logging under its own name.

        Args:
            name: Name of the series.
            context: Tags of the series; merged with the persistent context, over which they win.
        """
        return ScalarHandle(self, name, context)

    def bins_series(self, name: str, context: dict[str, str] | None = None) -> BinsHandle:
        """Return a handle of a series of distributions: see ``scalar_series``.

        Args:
            name: Name of the series.
            context: Tags of the series; merged with the persistent context, over which they win.
        """
        return BinsHandle(self, name, context)

    def histogram(self, name: str, histogram: Histogram, context: dict[str, str] | None = None) -> None:
        """Log a finished histogram.

        The default sends quantiles, moments and non-finite counts as scalars named ``<name>/p50``, ``<name>/mean``
        and so on, so that a backend without histograms loses nothing silently.

        Args:
            name: Name of the series.
            histogram: The finished histogram.
            context: Tags for this value alone; merged with the persistent context, over which they win.
        """
        for key, value in histogram.summary().items():
            self.scalar(f"{name}/{key}", value, context)

    def write(self, records: Iterable[Record]) -> None:
        """Log finished points: what is called with all that was accumulated.

        The default sets the step of each and calls ``scalar`` or ``histogram``.

        Args:
            records: The points, in the order of their steps. A point may come again with the same step and value, after
                a failure of any point of its window: the last one holds.

        Raises:
            TypeError: If the last point cannot be stored, ever: it is refused, and the others go on. ``ValueError``
                says the same. Anything else means that the backend is down, and is tried again.
        """
        for record in records:
            self.set_step(record.step)
            if isinstance(record.value, Histogram):
                self.histogram(record.name, record.value, dict(record.context))
            else:
                self.scalar(record.name, record.value, dict(record.context))

    def flush(self) -> None:
        """Block until everything logged so far is durable in the backend. Does nothing by default."""

    def rewind(self, step: int) -> None:
        """Take back what an earlier life of this run wrote at ``step`` or later.

        Called once, before anything is logged, on a run that was re-attached to from a checkpoint. Does nothing by
        default, which is right for a backend that overwrites a point logged again at the same step.

        Args:
            step: First step that will be logged again.
        """


TConfig = TypeVar("TConfig", bound=TrackerConfig)


class BaseTracker(ABC, Generic[TConfig]):
    """Creates runs in one backend; lives as long as the application. A ``Stateful`` of torch.distributed.checkpoint.

    Attributes:
        config: What it was made from by ``tracker_from_config``, if it was.
        amends: Whether the backend can take more values of a step that it was given before. If not, a step that has
            not ended is held back until it has.
        is_heavy: Whether its SDK computes in Python for long: ``accumulator.writer="auto"`` then opens it in a process
            of its own.
        shows_terminal: Whether it stores what the program prints: a process of its own is then told.
        training: The process that trains, if it is another one than this.
        run_id: The backend's identity of the current or the last run; ``open`` sets it.
        resume_id: Identity of the run that the next ``open`` re-attaches to. ``load_state_dict`` sets it and ``open``
            clears it, so that opening once more starts another run.
        new_id: What the next new run is to be called, where the backend lets us choose: part of the state until the run
            is open, so that a state that is older than the run finds it.
    """

    config: Any = None
    amends: bool = True
    is_heavy: bool = False
    shows_terminal: bool = False
    training: int | None = None
    run_id: str | None = None
    resume_id: str | None = None
    new_id: str | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the tracker itself: a copy of a module that holds it logs to the same run."""
        return self

    @classmethod
    @abstractmethod
    def from_config(cls, config: TConfig) -> Self:
        """Create the tracker its configuration describes.

        Args:
            config: The backend's configuration.
        """

    @abstractmethod
    def open(self, properties: RunConfig) -> AbstractContextManager[BaseTrackerRun]:
        """Open a run, or re-attach to the one named by the loaded state; close it on leaving.

        Args:
            properties: Name, description and hyperparameters of the run.

        Returns:
            A context manager that yields the open run.
        """

    def start(self, properties: RunConfig) -> BaseTrackerRun:
        """Open a run as ``open`` does, for whoever cannot use a ``with`` block; ``run.finish()`` closes it.

        A run that is not finished is closed when the interpreter exits.

        Args:
            properties: Name, description and hyperparameters of the run.
        """
        context = self.open(properties)
        run = context.__enter__()
        run._leave = context.__exit__
        at_exit.add(run, run.finish)
        return run

    def backends(self) -> "dict[str, BaseTracker[Any]]":
        """Return the trackers of the backends behind this one by name: itself, unless it stands for several."""
        return {"": self}

    def make_id(self, properties: RunConfig) -> str | None:
        """Return an identity for a new run, which opening it will find in ``new_id``; None if the backend gives one."""
        return None

    def how_to_open(self) -> str | None:
        """Return the command or the address that shows the current or the last run; None if there is nothing to see."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return what a later process needs to re-attach to the run, as plain JSON values."""
        return {"run_id": self.run_id, **({} if self.new_id is None else {"new_id": self.new_id})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, before ``open``.

        Args:
            state_dict: A state of the same backend.
        """
        self.run_id = self.resume_id = state_dict["run_id"]
        self.new_id = state_dict.get("new_id")
