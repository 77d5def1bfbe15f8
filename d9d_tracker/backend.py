"""What the backends of this package share: calls become checked records, runs are closed on every way out."""

import numbers
import operator
import os
import secrets
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

from typing_extensions import override

from d9d_tracker.base import BaseTracker, BaseTrackerRun, RunConfig, check_properties
from d9d_tracker.config import TrackerConfig
from d9d_tracker.context import as_context
from d9d_tracker.lazy_torch import is_tensor
from d9d_tracker.record import Histogram, Record

if TYPE_CHECKING:
    import torch

TConfig = TypeVar("TConfig", bound=TrackerConfig)


def as_float(name: str, value: "float | torch.Tensor") -> float:
    """Return a scalar as a Python number.

    Args:
        name: Name of the series, for the error.
        value: A real number, or a real tensor of one element on any device.

    Returns:
        The number, in float64.

    Raises:
        TypeError: If it is text, complex or of another unknown type.
        ValueError: If it is a tensor of another size than one element, or an integer outside the range of float64.
    """
    if is_tensor(value):
        if value.numel() != 1:
            shape = list(value.shape)
            raise ValueError(
                f"scalar {name!r} got a tensor of shape {shape}: reduce it to one element, or log it as bins"
            )
        value = value.detach().item()
    if not isinstance(value, numbers.Real):
        raise TypeError(f"scalar {name!r} got {value!r} of type {type(value).__name__}: pass a real number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"scalar {name!r} got an integer outside the range of float64: scale it") from None


class RecordRun(BaseTrackerRun):
    """An open run that hands every value to ``write_record`` as a ``Record``.

    Not thread safe: one thread logs at a time, but not always the one that opened the run. A process forked while the
    run is open has no part in it: there it is closed. Values logged before the
    first ``set_step`` belong to step 0, or to the last step of a run that was re-attached to, where that is known.

    Args:
        run_id: The backend's identity of this run; by default, one that no other run has.
        step: The step to start from.

    Attributes:
        id: The backend's identity of this run.
    """

    def __init__(self, run_id: str | None = None, step: int = 0):
        self.id = run_id or secrets.token_hex(16)
        self._step = step
        self._context: dict[str, str] = {}
        self._resumed = False
        self._closed = False
        self._error: BaseException | None = None
        self._process = os.getpid()

    @abstractmethod
    def write_record(self, record: Record) -> None:
        """Take one record; it need not be durable before ``flush``."""

    def sync(self) -> None:
        """Make everything written so far durable. Does nothing by default."""

    def release(self) -> None:
        """Make everything durable and let go of what the run holds. Called once. Only syncs by default."""
        self.sync()

    def flush(self) -> None:
        """Block until everything logged so far is durable in the backend; closing the run did so before it let go.

        Raises:
            OSError: If the backend cannot store it. What a failed flush leaves behind, the backend's run documents.
        """
        if self._is_open():
            self.sync()

    def close(self, error: BaseException | None = None) -> None:
        """Close the run; what is logged afterwards is refused. Closing again does nothing.

        Args:
            error: What ended the run, if it failed: backends that show how a run ended show that.
        """
        if self._is_open():
            self._closed, self._error = True, error
            self.release()

    def set_step(self, step: int) -> None:
        """Set the step that the following values belong to.

        Args:
            step: Index of the training step; never smaller than the one before. The first one of a run that was
                re-attached to takes back what an earlier life wrote there and later.

        Raises:
            TypeError: If it is not an int.
            ValueError: If it is smaller than the one before, or the run is closed.
        """
        if isinstance(step, bool) or is_tensor(step) or not hasattr(step, "__index__"):
            raise TypeError(f"a step is an int, not {step!r} of type {type(step).__name__}")
        step = operator.index(step)
        if not self._is_open():
            raise ValueError(
                f"step {step} set on run {self.id!r}, which is closed: set it inside `with tracker.open(...)`"
            )
        if self._resumed:
            self._resumed = False
            self.rewind(step)
        if step < self._step:
            raise ValueError(
                f"step {step} is before step {self._step} of run {self.id!r}: steps never go back, unless "
                f"rewind({step}) first takes back what an earlier life of the run wrote there"
            )
        self._step = step

    def rewind(self, step: int) -> None:
        """Take back what an earlier life of this run wrote at ``step`` or later.

        Args:
            step: First step that will be logged again.
        """
        self._step = min(self._step, step)

    def resume(self, resumed: bool) -> None:
        """Say whether this run is one that was re-attached to and has no accumulator in front of it.

        Args:
            resumed: Then the first ``set_step`` rewinds it.
        """
        self._resumed = resumed

    def set_context(self, context: dict[str, str]) -> None:
        """Replace the persistent context: tags attached to all following values.

        Args:
            context: Tag names and values, for example ``{"stage": "train"}``.

        Raises:
            TypeError: If it is not a dict of text; numbers become text.
        """
        self._context = as_context("set_context", context)

    @override
    def get_context(self) -> dict[str, str]:
        return dict(self._context)

    def scalar(self, name: str, value: "float | torch.Tensor", context: dict[str, str] | None = None) -> None:
        """Log one number; a tensor on a device is waited for.

        Args:
            name: Name of the series.
            value: A number, or a tensor of one element.
            context: Tags for this value alone; merged with the persistent context, over which they win.

        Raises:
            TypeError: If the value is no real number.
            ValueError: If the value has several elements, the name is empty or the run is closed.
        """
        self.write_record(self._record(name, as_float(name, value), context))

    @override
    def log_at(
        self, step: int, values: "Mapping[str, float | torch.Tensor]", context: Mapping[str, Any] | None = None
    ) -> None:
        for name, value in values.items():
            record = self._record(name, as_float(name, value), None if context is None else dict(context))
            self.write_record(record._replace(step=step))

    def bins(self, name: str, values: "torch.Tensor", context: dict[str, str] | None = None) -> None:
        """Log the distribution of a population, binned at once where it lies.

        Args:
            name: Name of the series.
            values: The population to bin: any shape, any real dtype.
            context: Tags for this value alone; merged with the persistent context, over which they win.

        Raises:
            TypeError: If the values are no real tensor.
            ValueError: If the name is empty or the run is closed.
        """
        self._check_open(name)
        if not is_tensor(values):
            raise TypeError(f"bins {name!r} got {type(values).__name__}: pass the population as a tensor")
        try:
            histogram = Histogram.from_values(values)
        except TypeError as error:
            raise TypeError(f"bins {name!r}: {error}") from None
        self.histogram(name, histogram, context)

    def histogram(self, name: str, histogram: Histogram, context: dict[str, str] | None = None) -> None:
        """Log a finished histogram.

        Args:
            name: Name of the series.
            histogram: The finished histogram.
            context: Tags for this value alone; merged with the persistent context, over which they win.

        Raises:
            ValueError: If the name is empty or the run is closed.
        """
        self.write_record(self._record(name, histogram, context))

    def write(self, records: Iterable[Record]) -> None:
        """Log finished points.

        Args:
            records: The points, in the order of their steps; or of steps that are over.

        Raises:
            ValueError: If a name is empty, the run is closed, or the backend takes nothing for a step that is over.
        """
        if self._context:
            super().write(records)
            return
        step = None
        for record in records:
            if record.step != step:
                step = record.step
                if step >= self._step:  # else it is over, and the point is written where it belongs
                    self.set_step(step)
            if not record.name:
                self._check_open(record.name)
            self.write_record(record)

    def _record(self, name: str, value: float | Histogram, context: dict[str, str] | None) -> Record:
        self._check_open(name)
        tags = as_context(name, context) if context else {}
        return Record(name=name, step=self._step, context={**self._context, **tags}, value=value)

    def _is_open(self) -> bool:
        return not self._closed and os.getpid() == self._process

    def _check_open(self, name: str) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError(f"the name of a series is text that is not empty, not {name!r}")
        if not self._is_open():
            raise ValueError(
                f"{name!r} was logged on run {self.id!r}, which is closed: log inside `with tracker.open(...)`"
            )


class RecordTracker(BaseTracker[TConfig]):
    """A tracker whose ``open`` closes its run on every way out.

    ``open`` starts a new run each time, except that the first ``open`` after ``load_state_dict`` re-attaches to the
    run of the state.

    Args:
        config: The backend's configuration.
    """

    config: TConfig

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
        self.run_id = self.resume_id = run_id

    @contextmanager
    def open(self, properties: RunConfig) -> Iterator[RecordRun]:
        """Open a run, or re-attach to the one named by the loaded state; close it on leaving.

        An exception that leaves the block is the one that surfaces, also when closing the run fails as well: that
        failure is then a note on it.

        Args:
            properties: Name, description and hyperparameters of the run.

        Yields:
            The open run.
        """
        check_properties(properties)
        run = self.open_run(properties, self.resume_id)
        run.resume(self.resume_id is not None and not self.is_accumulated)
        self.run_id, self.resume_id = run.id, None
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
        """Start a run, or re-attach to the one of that id."""
