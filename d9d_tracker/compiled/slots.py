"""Slots of series, and their places for code that is captured or traced: what Dynamo calls, guarded on the arguments.

What these functions return is compiled into the graph then. A run is no argument for some versions of torch, and
unguarded as the object of a method; the key of a run is guarded.
"""

import threading
from collections import defaultdict
from typing import get_args
from weakref import WeakSet

from d9d_tracker.config import AccumulatorConfig, Binning, IntegerBinning
from d9d_tracker.errors import TrackerTypeError, TrackerValueError
from d9d_tracker.lazy_torch import assume_constant_result
from d9d_tracker.log import logger
from d9d_tracker.series.series import REDUCTIONS, ContextItems, HistogramSeries, Reduction, ScalarSeries, label
from d9d_tracker.tracing import allow_as_constant, compilation, user_line
from d9d_tracker_kernels.binning import CELLS

from .runs import Key, Run

_said_closed: "WeakSet[Run]" = WeakSet()
_said_threads: "WeakSet[Run]" = WeakSet()
_MOST_GRAPHS = 4
_graphs: dict[str, dict[str, str]] = defaultdict(dict)  # by line of code: the first name that each graph logs there

# Lets a binning be such an argument; guarded by equality.
for _binning in get_args(Binning):
    allow_as_constant(_binning)


@assume_constant_result
def say_closed(key: Key, what: str) -> None:
    """Say, once a process and run object, that something was logged while no run was open."""
    if key[0].run not in _said_closed:
        _said_closed.add(key[0].run)
        logger.warning(
            "%s was logged while no run was open, or in a forked process, and is dropped, as is all that follows until "
            "one is; log inside `with tracker.open(...) as run`",
            what,
        )


@assume_constant_result
def token_of(key: Key) -> str:
    """Return what an operator with an effect is given of a run; read from the key, it would be a guard."""
    return key[0].token


@assume_constant_result
def scalar_at(
    key: Key, held: bool, name: str, items: ContextItems, reduce: Reduction, root: float = 1.0, spread: bool = False
) -> int:
    """Return the slot of a scalar series, or its place if compiled or captured code holds it, with the call's context.

    See ``Registry.slot`` and ``Places.claim``.
    """
    series, run = scalar_series(name, items, reduce, root, spread), key[0].run
    if not held:
        return run.buffers.scalar_series.slot(series)
    _warn_of_names(name)
    _warn_of_threads(run, name)
    return run.buffers.places.claim(series)


def scalar_series(name: str, items: ContextItems, reduce: Reduction, root: float, spread: bool) -> ScalarSeries:
    """Return a scalar series; see ``scalar_at``."""
    if reduce not in REDUCTIONS:
        raise TrackerValueError(f"{label(name, items)}: reduce={reduce!r} is not one of {', '.join(REDUCTIONS)}")
    return ScalarSeries(name, items, reduce, root, spread)


def _warn_of_threads(run: Run, name: str) -> None:
    """Warn, while code is compiled or captured, that it will log in another thread than the one that steps."""
    stepping = run.stepping_thread
    if stepping is not None and stepping != threading.get_ident() and run not in _said_threads:
        _said_threads.add(run)
        logger.warning(
            "series %r: compiled code in thread %r logs to a run whose set_step is called in another thread. If both "
            "run at the same time, values are lost: compiled code takes no lock. Log outside of the compiled function "
            "there, or step in the same thread",
            name,
            threading.current_thread().name,
        )


def _warn_of_names(name: str) -> None:
    """Warn, while tracing, when a line has cost its fourth graph because it logged under yet another name."""
    graph, line = compilation(), user_line()
    if graph is None or line is None or graph in _graphs[line]:
        return
    is_new = name not in _graphs[line].values()
    _graphs[line][graph] = name
    names = dict.fromkeys(_graphs[line].values())
    if is_new and len(names) == _MOST_GRAPHS:
        logger.warning(
            "%s was compiled %d times because it logs under another name each time (%s): give each module a handle, "
            "made once by run.scalar_series(name) or run.bins_series(name), and log to that",
            line,
            _MOST_GRAPHS,
            ", ".join(map(repr, names)),
        )


@assume_constant_result
def histogram_at(
    key: Key, held: bool, name: str, items: ContextItems, binning: Binning | None, every: int | None
) -> tuple[int, int, int, int, float, float]:
    """Return the slot of a histogram series, or its place, its cadence and its binning; see ``scalar_at``.

    None stands for those of the configuration.
    """
    run = key[0].run
    series, cadence = histogram_series(run.config, name, items, binning, every)
    if held:
        _warn_of_names(name)
        _warn_of_threads(run, name)
    at = run.buffers.places.claim(series) if held else run.buffers.histogram_series.slot(series)
    return (at, cadence, *series.binning.parameters())


def histogram_series(
    config: AccumulatorConfig, name: str, items: ContextItems, binning: Binning | None, every: int | None
) -> tuple[HistogramSeries, int]:
    """Return a histogram series and its cadence; see ``histogram_at``."""
    cadence = config.bins_every if every is None else every
    chosen = config.binning if binning is None else binning
    check_settings(label(name, items), chosen, cadence)
    return HistogramSeries(name, items, chosen), cadence


@assume_constant_result
def counts_at(key: Key, held: bool, name: str, items: ContextItems, bins: int, every: int | None) -> tuple[int, int]:
    """Return the slot of a series of `bins` counts, or its place, and its cadence; see ``histogram_at``."""
    return histogram_at(key, held, name, items, integer_binning(name, items, bins), every)[:2]


def integer_binning(name: str, items: ContextItems, bins: int) -> IntegerBinning:
    """Return the binning of a series of counts: of the integers below `bins`; see ``counts_at``."""
    if not 1 <= bins <= CELLS - 2:
        raise TrackerValueError(f"{label(name, items)}: {bins} counts; pass 1 to {CELLS - 2}, or sums of neighbours")
    return IntegerBinning(bins=bins)


def check_settings(what: str, binning: object, every: object) -> None:
    """Refuse what is no binning or no cadence."""
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise TrackerValueError(f"{what}: every={every!r} is not a positive int; leave it out or pass 1")
    if not isinstance(binning, Binning):
        kind = type(binning).__name__
        raise TrackerTypeError(
            f"{what}: a binning is an ExponentialBinning, LinearBinning or IntegerBinning, not {kind}"
        )
