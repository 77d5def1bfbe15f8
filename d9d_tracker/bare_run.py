"""What a loop logs to without an accumulator: every call becomes a checked record and goes to the backends at once."""

import itertools
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from .base import BaseTrackerRun
from .context import Contexts, as_context, as_items
from .lazy_torch import is_tensor
from .points import Points
from .record import Histogram, Record
from .sink import Sink
from .steps import as_step

if TYPE_CHECKING:
    import torch

_AT_ONCE = 1000


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
    if not isinstance(value, numbers.Real) or isinstance(value, np.timedelta64):
        raise TypeError(f"scalar {name!r} got {value!r} of type {type(value).__name__}: pass a real number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"scalar {name!r} got an integer outside the range of float64: scale it") from None


class BareRun(BaseTrackerRun):
    """An open run in one backend or several: a call goes to one after the other, and what fails surfaces after all.

    Not thread safe. Values logged before the first ``set_step`` belong to step 0, or to the last step of a run that was
    re-attached to, where that is known. What a single backend's run has besides, its ``id`` for one, is read through
    it.

    Args:
        sinks: The backends' runs.
        resumed: Whether they were re-attached to: the first ``set_step`` then takes back what an earlier life wrote
            there and later.
    """

    def __init__(self, sinks: Sequence[Sink], resumed: bool = False):
        self._sinks = sinks
        self._resumed = resumed
        self._step = max(sink.step for sink in sinks)
        self._contexts = Contexts()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_sinks" or len(self._sinks) != 1:
            raise AttributeError(f"{type(self).__name__} has no {name!r}")
        return getattr(self._sinks[0], name)

    @override
    def set_step(self, step: int) -> None:
        """Set the step that the following values belong to.

        Args:
            step: Index of the training step; never smaller than the one before.

        Raises:
            TypeError: If it is not an int.
            ValueError: If it is negative or smaller than the one before, or the run is closed.
        """
        step = as_step("set_step", step)
        self._check_open(f"step {step}")
        if self._resumed:
            self.rewind(step)
        if step < self._step:
            raise ValueError(
                f"step {step} is before step {self._step} of this run: steps never go back, unless rewind({step}) "
                "first takes back what an earlier life of the run wrote there"
            )
        self._step = step

    @override
    def set_context(self, context: dict[str, str]) -> None:
        self._contexts.set(as_items(as_context("set_context", context)))

    @override
    def get_context(self) -> dict[str, str]:
        return dict(self._contexts.get())

    @override
    @contextmanager
    def context(self, **tags: str) -> Iterator[None]:
        with self._contexts.block(as_context("context", tags)):
            yield

    @override
    def add_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._each(lambda sink: sink.add_hparams(hparams))

    @override
    def scalar(self, name: str, value: "float | torch.Tensor", context: dict[str, str] | None = None) -> None:
        self._check_open(name)
        self._write([self._record(name, as_float(name, value), context)])

    @override
    def log_at(
        self,
        step: int,
        values: "Mapping[str, float | torch.Tensor | Histogram]",
        context: Mapping[str, Any] | None = None,
    ) -> None:
        step = as_step("log_at", step)
        for name, value in values.items():
            self._check_open(name)
            finished = value if isinstance(value, Histogram) else as_float(name, value)
            record = self._record(name, finished, None if context is None else dict(context))
            self._write([record._replace(step=step)])

    @override
    def bins(self, name: str, values: "torch.Tensor", context: dict[str, str] | None = None) -> None:
        self._check_open(name)
        if not is_tensor(values):
            raise TypeError(f"bins {name!r} got {type(values).__name__}: pass the population as a tensor")
        try:
            histogram = Histogram.from_values(values)
        except TypeError as error:
            raise TypeError(f"bins {name!r}: {error}") from None
        self.histogram(name, histogram, context)

    @override
    def histogram(self, name: str, histogram: Histogram, context: dict[str, str] | None = None) -> None:
        self._check_open(name)
        self._write([self._record(name, histogram, context)])

    @override
    def write(self, records: Iterable[Record]) -> None:
        """Log finished points.

        Args:
            records: The points, in the order of their steps; or of steps that are over.

        Raises:
            ValueError: If a name is empty, the run is closed, or the backend takes nothing for a step that is over.
        """
        given = iter(records)
        while some := list(itertools.islice(given, _AT_ONCE)):
            for record in some:
                self._check_open(record.name)
            if some[-1].step > self._step or self._resumed:
                self.set_step(some[0].step if self._resumed else some[-1].step)
            if context := self.get_context():
                some = [record._replace(context={**context, **record.context}) for record in some]
            self._write(some)
            self._step = max(self._step, some[-1].step)

    def go_on(self) -> None:
        """Say that a run that was re-attached to has lost nothing: its first ``set_step`` takes nothing back."""
        self._resumed = False

    @override
    def flush(self) -> None:
        self._each(lambda sink: sink.flush())

    @override
    def rewind(self, step: int) -> None:
        self._step, self._resumed = min(self._step, step), False
        self._each(lambda sink: sink.rewind(step))

    def _record(self, name: str, value: float | Histogram, context: dict[str, str] | None) -> Record:
        tags = as_context(name, context) if context else {}
        return Record(name=name, step=self._step, context={**self.get_context(), **tags}, value=value)

    def _write(self, records: list[Record]) -> None:
        points = Points.of(records)

        def write(sink: Sink) -> None:
            taken = sink.write_points(points)
            if taken.error is not None:
                raise taken.error
            if taken.refused:
                raise taken.refused[0].error

        self._each(write)

    def _each(self, method: Callable[[Sink], None]) -> None:
        errors: list[Exception] = []
        for sink in self._sinks:
            try:
                method(sink)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _check_open(self, name: str) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError(f"the name of a series is text that is not empty, not {name!r}")
        if not all(getattr(sink, "is_open", True) for sink in self._sinks):
            raise ValueError(f"{name!r} was logged on a run that is closed: log inside `with tracker.open(...)`")
