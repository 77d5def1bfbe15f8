"""Every way of logging, with what must be stored of it.

Call ``k`` of a way logs the number ``k``, more or less, so that what is missing, doubled or mixed can be seen.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import accumulate, count
from typing import Any

import torch
from torch import nn

from d9d_tracker import Histogram, IntegerBinning

from .matrix_backend import add_hparams

VALUES = 16  # a population's values come round again
ROUND = IntegerBinning(bins=VALUES)
OVERWRITTEN = 1e6  # where `log_at` follows


@dataclass
class Stored:
    """What a backend holds of a run.

    Attributes:
        scalars: Numbers by series, which is a name and its tags in one text, and step.
        populations: Of each histogram how many values, and their sum; by series and step.
        bins: Of each histogram how many values are in the bin that begins there, if the backend has bins.
        hparams: Hyperparameters.
    """

    scalars: dict[str, dict[int, float]] = field(default_factory=dict)
    populations: dict[str, dict[int, tuple[int, float]]] = field(default_factory=dict)
    bins: dict[str, dict[int, dict[float, int]]] = field(default_factory=dict)
    hparams: dict[str, Any] = field(default_factory=dict)

    def put(self, series: str, step: int, value: float | Mapping[float, int]) -> None:
        if isinstance(value, Mapping):
            total = sum(edge * count for edge, count in value.items())
            self.bins.setdefault(series, {})[step] = dict(value)
            self.populations.setdefault(series, {})[step] = (sum(value.values()), total)
        else:
            self.scalars.setdefault(series, {})[step] = value


def series_of(name: str, context: Mapping[str, str]) -> str:
    return " ".join([name, *(f"{tag}={value}" for tag, value in sorted(context.items()))])


class Way:
    """One way of logging.

    Attributes:
        name: What tells it from the others.
        method: The method that is called, as the table has it.
        compiles: Whether it can be called in compiled code.
    """

    name: str
    method: str
    compiles = True

    def begin(self, run: Any) -> None:
        """Make what serves all runs of a tracker."""

    def begin_run(self, run: Any, backend: str | None) -> None:
        """Make what belongs to a run; ``backend`` is that of torch.compile, if the way is called in compiled code."""

    def log(self, run: Any, k: Any, step: int) -> None:
        """Call number ``k``, a tensor in compiled code, while the run is at ``step``, or beyond it by now."""
        raise NotImplementedError

    def found(self, stored: Stored, windows: bool) -> Any:
        """What is stored of it."""
        raise NotImplementedError

    def expected(self, calls: Mapping[int, int], stored: Stored, ends: Sequence[int] | None) -> Any:
        """What must be stored of calls, given by their step; and by windows, if it is known where they end."""
        raise NotImplementedError

    def holds(self, stored: Stored, calls: int) -> bool:
        """Whether so many calls are stored, each once, whatever the step of each was."""
        raise NotImplementedError

    def holds_one_of(self, stored: Stored, calls: Iterable[int]) -> bool:
        """Whether one of these numbers of calls is stored."""
        return any(self.holds(stored, count) for count in calls)

    def series(self) -> list[str]:
        """The series it logs."""
        return []

    def compiled_series(self) -> list[str]:
        """Those of them that compiled code logs, where there is any."""
        return self.series() if self.compiles else []


def mixed(k: Any) -> Any:
    """A number for each call, the larger one of a step now in its first half and now in its second."""
    return k + (1 - 2 * (k % 2)) * (k // 2 % 2)


class Scalar(Way):
    """``scalar``, ``scalars`` or a handle: the point of a step is made of its calls."""

    def __init__(self, call: str, reduce: Any, scope: Any = "global", weighted: bool = False):
        words = [call, reduce, *([scope] if scope != "global" else []), *(["weight"] if weighted else [])]
        self.name = " ".join(words)
        self.method = "`scalar_series`" if call == "handle" else f"`{call}`"
        self._call, self._reduce, self._scope, self._weighted = call, reduce, scope, weighted
        self._series = "_".join(words)

    def begin(self, run: Any) -> None:
        if self._call == "handle":
            self._handle = run.scalar_series(self._series, reduce=self._reduce, scope=self._scope)

    def log(self, run: Any, k: Any, step: int) -> None:
        value, weight = mixed(k), 1 + 2 * (k % 2) if self._weighted else None
        if self._call == "scalar":
            run.scalar(self._series, value, reduce=self._reduce, weight=weight, scope=self._scope)
        elif self._call == "scalars":
            both = {f"{self._series}/a": value, f"{self._series}/b": value}
            run.scalars(both, {"part": "x"}, reduce=self._reduce, weight=weight, scope=self._scope)
        else:
            self._handle.scalar(value, weight=weight)

    def series(self) -> list[str]:
        names = [f"{self._series}/a", f"{self._series}/b"] if self._call == "scalars" else [self._series]
        tags = {"part": "x"} if self._call == "scalars" else {}
        if self._scope == "spread":
            names = [f"{name}/{part}" for name in names for part in ("min", "mean", "max")]
        return [series_of(name, tags | ({"rank": "0"} if self._scope == "rank" else {})) for name in names]

    def found(self, stored: Stored, windows: bool) -> Any:
        return {series: stored.scalars.get(series) for series in self.series()}

    def expected(self, calls: Mapping[int, int], stored: Stored, ends: Sequence[int] | None) -> Any:
        by_step: dict[int, list[int]] = {}
        for k, step in calls.items():
            by_step.setdefault(step, []).append(k)
        points = {step: list(self._growing(of))[-1] for step, of in by_step.items()}
        return dict.fromkeys(self.series(), points)

    def holds(self, stored: Stored, calls: int) -> bool:
        return all(_is_made_of(calls, stored.scalars.get(series, {}), self._growing) for series in self.series())

    def _growing(self, calls: Iterable[int]) -> Iterator[float]:
        """The point that the first call makes, the first two, and so on."""
        calls = list(calls)
        values = [float(mixed(k)) for k in calls]
        if self._reduce == "mean":
            weights = [1 + 2 * (k % 2) if self._weighted else 1 for k in calls]
            sums = accumulate(value * weight for value, weight in zip(values, weights, strict=True))
            return (total / weight for total, weight in zip(sums, accumulate(weights), strict=True))
        kinds: dict[str, Any] = {"sum": None, "min": min, "max": max, "last": lambda old, new: new}
        return accumulate(values, kinds[self._reduce])


def _is_made_of(calls: int, points: Mapping[int, float], growing: Any) -> bool:
    """Whether calls 0 to n - 1, cut into steps somewhere, make these points."""
    begins = {0}
    for _, point in sorted(points.items()):
        begins = {
            begin + count
            for begin in begins
            for count, value in enumerate(growing(range(begin, calls)), start=1)
            if value == point
        }
    return calls in begins


class Population(Way):
    """``bins``, ``bins_many``, ``counts``, ``histogram`` or a handle: a window has exactly the values of its calls."""

    def __init__(self, call: str, scope: Any = "global"):
        words = [call, *([scope] if scope != "global" else [])]
        self.name = " ".join(words)
        self.method = "`bins_series`" if call == "handle bins" else f"`{call}`"
        self.compiles = call != "histogram"
        self._call, self._scope = call, scope
        self._series = "_".join(words).replace(" ", "_")

    def begin(self, run: Any) -> None:
        if self._call == "handle bins":
            self._handle = run.bins_series(self._series, scope=self._scope)

    def log(self, run: Any, k: Any, step: int) -> None:
        k = k if isinstance(k, torch.Tensor) else torch.tensor(float(k))
        value = (k % VALUES).reshape(1)
        if self._call == "bins":
            run.bins(self._series, 2**value, scope=self._scope)
        elif self._call == "bins_many":
            both = {f"{self._series}/a": value, f"{self._series}/b": value}
            run.bins_many(both, binning=ROUND, scope=self._scope)
        elif self._call == "counts":
            run.counts(self._series, (torch.arange(VALUES) == value).to(torch.int64), scope=self._scope)
        elif self._call == "histogram":
            run.histogram(self._series, Histogram.from_values(value, ROUND), binning=ROUND, scope=self._scope)
        else:
            self._handle.bins(2**value)

    def series(self) -> list[str]:
        names = [f"{self._series}/a", f"{self._series}/b"] if self._call == "bins_many" else [self._series]
        return [series_of(name, {"rank": "0"} if self._scope == "rank" else {}) for name in names]

    def values(self) -> dict[str, Any]:
        """The value that a call counts, by series."""
        if "bins" in self._call.split():
            return dict.fromkeys(self.series(), lambda k: 2.0 ** (k % VALUES))
        return dict.fromkeys(self.series(), lambda k: float(k % VALUES))

    def found(self, stored: Stored, windows: bool) -> Any:
        kept = stored.bins or stored.populations
        if windows:
            return {series: kept.get(series) for series in self.values()}
        return {series: _whole(kept.get(series, {}).values()) for series in self.values()}

    def expected(self, calls: Mapping[int, int], stored: Stored, ends: Sequence[int] | None) -> Any:
        def of(value: Any, steps: Iterable[int]) -> Any:
            counted = Counter(value(k) for k, step in calls.items() if step in steps)
            return dict(counted) if stored.bins else _summed(counted)

        if ends is None:
            return {series: of(value, range(max(calls) + 1)) for series, value in self.values().items()}
        begins = [0, *(end + 1 for end in ends)]
        windows = {end: range(begin, end + 1) for begin, end in zip(begins, ends, strict=False)}
        return {
            series: {end: of(value, steps) for end, steps in windows.items()} for series, value in self.values().items()
        }

    def holds(self, stored: Stored, calls: int) -> bool:
        return self.found(stored, False) == self.expected(dict.fromkeys(range(calls), 0), stored, None)


def _whole(parts: Iterable[Any]) -> Any:
    parts = list(parts)
    if parts and isinstance(parts[0], tuple):
        return tuple(map(sum, zip(*parts, strict=True)))
    return dict(sum((Counter(part) for part in parts), Counter()))


def _summed(counted: Mapping[float, int]) -> tuple[int, float]:
    return sum(counted.values()), sum(value * count for value, count in counted.items())


class Watch(Population):
    """``watch``: the optimizer steps once a call; the weight is 1, so that all that is counted is known."""

    def __init__(self) -> None:
        super().__init__("watch")
        self.compiles = False  # the model is, the optimizer is not

    def begin_run(self, run: Any, backend: str | None) -> None:
        self._model = nn.Sequential(nn.Linear(1, 1, bias=False))
        nn.init.ones_(self._model[0].weight)
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=0.0)
        run.watch(self._model, parameters=True, activations=True)
        self._forward = self._model if backend is None else torch.compile(self._model, backend=backend, fullgraph=True)

    def log(self, run: Any, k: Any, step: int) -> None:
        self._optimizer.zero_grad()
        self._forward(torch.tensor([[2.0 ** (int(k) % VALUES)]])).sum().backward()
        self._optimizer.step()

    def series(self) -> list[str]:
        return ["gradients/0.weight", "activations/0", "parameters/0.weight"]

    def compiled_series(self) -> list[str]:
        return ["activations/0"]

    def values(self) -> dict[str, Any]:
        value = dict.fromkeys(self.series(), lambda k: 2.0 ** (k % VALUES))
        return value | {"parameters/0.weight": lambda k: 1.0}

    def holds_one_of(self, stored: Stored, calls: Iterable[int]) -> bool:
        # The run may be closed between a call's forward pass and its backward pass.
        found = self.found(stored, False)
        expected = [self.expected(dict.fromkeys(range(count), 0), stored, None) for count in calls]
        return all(any(found[series] == one[series] for one in expected) for series in self.series())


class LogAt(Way):
    """``log_at`` at the current step, the one before, or one that was logged at otherwise: the last value stands."""

    compiles = False

    def __init__(self, kind: str):
        self.name = f"log_at {kind}"
        self.method = f"`log_at`, {kind}"
        self._kind, self._series = kind, f"log_at_{kind.replace(' ', '_')}"

    def log(self, run: Any, k: Any, step: int) -> None:
        if self._kind == "over a scalar":
            run.scalar(self._series, OVERWRITTEN)
        run.log_at(self._at(step), {self._series: int(k)})

    def _at(self, step: int) -> int:
        return max(step - 1, 0) if self._kind == "a step late" else step

    def series(self) -> list[str]:
        return [self._series]

    def found(self, stored: Stored, windows: bool) -> Any:
        return stored.scalars.get(self._series)

    def expected(self, calls: Mapping[int, int], stored: Stored, ends: Sequence[int] | None) -> Any:
        return {self._at(step): float(k) for k, step in calls.items()}

    def holds(self, stored: Stored, calls: int) -> bool:
        return _is_made_of(calls, stored.scalars.get(self._series, {}), lambda of: (float(k) for k in of))


class LogAtHistogram(LogAt):
    """``log_at`` with a histogram, which is of its step and not of a window."""

    def __init__(self):
        super().__init__("a histogram")

    def log(self, run: Any, k: Any, step: int) -> None:
        run.log_at(step, {self._series: Histogram.from_values(torch.tensor([float(int(k) % VALUES)]), ROUND)})

    def found(self, stored: Stored, windows: bool) -> Any:
        return (stored.bins or stored.populations).get(self._series)

    def expected(self, calls: Mapping[int, int], stored: Stored, ends: Sequence[int] | None) -> Any:
        values = {step: {float(k % VALUES): 1} for k, step in calls.items()}
        return values if stored.bins else {step: _summed(value) for step, value in values.items()}

    def holds(self, stored: Stored, calls: int) -> bool:
        sums = {step: total for step, (_, total) in stored.populations.get(self._series, {}).items()}
        return _is_made_of(calls, sums, lambda of: (float(k % VALUES) for k in of))


class Timer(Way):
    """``time``, by a clock that goes on by ``k`` in call ``k``, of which others' calls meanwhile see nothing."""

    compiles = False
    name, method = "time", "`time`"
    _series = "time/block"

    def begin(self, run: Any) -> None:
        self._nows, self._others = threading.local(), count()
        self._block = run.time("block")(self._work)

    def begin_run(self, run: Any, backend: str | None) -> None:
        run.clock.seconds = lambda: self._stack()[-1] if self._stack() else float(next(self._others))

    def _work(self, seconds: int) -> None:
        self._stack()[-1] += seconds

    def _stack(self) -> list[float]:
        if not hasattr(self._nows, "stack"):
            self._nows.stack = []
        return self._nows.stack

    def log(self, run: Any, k: Any, step: int) -> None:
        stack = self._stack()
        stack.append(0.0)
        try:
            self._block(int(k))
        finally:
            stack.pop()

    def series(self) -> list[str]:
        return [self._series, f"{self._series}/host"]

    def found(self, stored: Stored, windows: bool) -> Any:
        return {series: stored.scalars.get(series) for series in self.series()}

    def expected(self, calls: Mapping[int, int], stored: Stored, ends: Sequence[int] | None) -> Any:
        points: dict[int, float] = {}
        for k, step in calls.items():
            points[step] = points.get(step, 0.0) + k
        return dict.fromkeys(self.series(), points)

    def holds(self, stored: Stored, calls: int) -> bool:
        growing = lambda of: accumulate(float(k) for k in of)  # noqa: E731 as short as its name
        return all(_is_made_of(calls, stored.scalars.get(series, {}), growing) for series in self.series())


class Rate(Way):
    """``rate``: the running total holds all calls so far."""

    compiles = False
    name, method, _series = "rate", "`rate`", "units"

    def log(self, run: Any, k: Any, step: int) -> None:
        run.rate(self._series, int(k))

    def series(self) -> list[str]:
        return [self._series]

    def found(self, stored: Stored, windows: bool) -> Any:
        return stored.scalars.get(self._series)

    def expected(self, calls: Mapping[int, int], stored: Stored, ends: Sequence[int] | None) -> Any:
        return {step: float(sum(k for k, other in calls.items() if other <= step)) for step in calls.values()}

    def holds(self, stored: Stored, calls: int) -> bool:
        totals = [total for _, total in sorted(stored.scalars.get(self._series, {}).items())]
        return totals == sorted(totals) and totals[-1] == sum(range(calls))


class Hparams(Way):
    """``add_hparams``, of the run or of the backend's run by ``backend(...)``, whose futures must be kept."""

    compiles = False

    def __init__(self, by_backend: bool = False):
        self.name = "backend(...)" if by_backend else "add_hparams"
        self.method = f"`{self.name}`"
        self._prefix, self._by_backend = "called" if by_backend else "added", by_backend
        self.futures: list[Future[Any]] = []

    def log(self, run: Any, k: Any, step: int) -> None:
        hparams = {f"{self._prefix}{int(k)}": int(k)}
        if not self._by_backend:
            run.add_hparams(hparams)
            return
        self.futures += run.backend(add_hparams, hparams=hparams).values()

    def found(self, stored: Stored, windows: bool) -> Any:
        own = {key: int(value) for key, value in stored.hparams.items() if key.startswith(self._prefix)}
        return own, [_end_of(future) for future in self.futures]

    def expected(self, calls: Mapping[int, int], stored: Stored, ends: Sequence[int] | None) -> Any:
        return {f"{self._prefix}{k}": k for k in calls}, [None] * len(self.futures)

    def holds(self, stored: Stored, calls: int) -> bool:
        return self.found(stored, False) == self.expected(dict.fromkeys(range(calls), 0), stored, None)


def _end_of(future: Future[Any]) -> Any:
    if not future.done() or future.cancelled():
        return "cancelled" if future.done() else "pending"
    return future.exception()


def all_ways() -> list[Way]:
    """Every way, for one life of a run."""
    reductions = ("mean", "sum", "min", "max", "last")
    scopes = ("global", "rank", "spread")
    ways: list[Way] = [Scalar("scalar", reduce, scope) for scope in scopes for reduce in reductions]
    ways.append(Scalar("scalar", "mean", weighted=True))
    for call in ("scalars", "handle"):
        ways += [
            Scalar(call, "sum"),
            Scalar(call, "mean", weighted=True),
            Scalar(call, "last", "rank"),
            Scalar(call, "max", "spread"),
        ]
    ways += [Population(call) for call in ("bins", "bins_many", "counts", "histogram", "handle bins")]
    ways += [Population("bins", "rank"), Watch()]
    ways += [LogAt("the current step"), LogAt("a step late"), LogAt("over a scalar"), LogAtHistogram()]
    ways += [Timer(), Rate()]
    return [*ways, Hparams(), Hparams(by_backend=True)]
