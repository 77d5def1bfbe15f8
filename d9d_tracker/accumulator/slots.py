"""Slots of series for code that may be traced: what Dynamo calls while it traces, guarded on the arguments.

What these functions return is compiled into the graph. A run is no argument for some versions of torch, and unguarded
as the object of a method; the token of a run is guarded.
"""

import logging
from typing import Any, get_args

import torch
import torch.utils._pytree

from d9d_tracker.config import Binning, IntegerBinning
from d9d_tracker.errors import TrackerTypeError, TrackerValueError
from d9d_tracker_kernels import CELLS

from .registry import REDUCTIONS, ContextItems, HistogramSeries, Reduction, Registry, ScalarSeries, label
from .runs import runs

logger = logging.getLogger("d9d_tracker")

_said_closed: set[str] = set()

# Lets a binning be such an argument; guarded by equality.
for _binning in get_args(Binning):
    torch.utils._pytree.register_constant(_binning)


@torch.compiler.assume_constant_result
def say_closed(token: str, name: str) -> None:
    """Say, once a process and run object, that something was logged while no run was open.

    Args:
        token: Token of the run.
        name: Name of the series.
    """
    if token not in _said_closed:
        _said_closed.add(token)
        logger.warning(
            "%s was logged while no run was open, or in a forked process, and is dropped, as is all that follows until "
            "one is; log inside `with tracker.open(...) as run`",
            name,
        )


@torch.compiler.assume_constant_result
def scalar_slot(
    token: str, name: str, items: ContextItems, reduce: Reduction, root: float = 1.0, spread: bool = False
) -> int:
    """Return the slot of a scalar series, giving it one when it is new.

    Args:
        token: Token of the run.
        name: Name of the series.
        items: Its context.
        reduce: Its reduction.
        root: The p of partial p-norms, else 1.
        spread: Whether it is of ``scope="spread"``.

    Raises:
        TrackerValueError: If the reduction is unknown or not that of the series, the series is one
            of histograms, or the slots ran out.
    """
    if reduce not in REDUCTIONS:
        raise TrackerValueError(f"{label(name, items)}: reduce={reduce!r} is not one of {', '.join(REDUCTIONS)}")
    buffers = runs[token].buffers
    _refuse_other_kind(buffers.histogram_series, "bins", name, items)
    series = ScalarSeries(name, items, reduce, root, spread)
    return buffers.scalar_series.slot(series, torch.compiler.is_compiling())


@torch.compiler.assume_constant_result
def histogram_slot(
    token: str, name: str, items: ContextItems, binning: Binning | None, every: int | None
) -> tuple[int, int, int, int, float, float]:
    """Return the slot of a histogram series and what the operators are told about it: cadence and binning.

    Args:
        token: Token of the run.
        name: Name of the series.
        items: Its context.
        binning: Its binning, or None for the one of the configuration.
        every: Its cadence in steps, or None for the one of the configuration.

    Raises:
        TrackerTypeError: If the binning is none.
        TrackerValueError: If the cadence is no positive int, the binning is not that of the series,
            the series is one of scalars, or the slots ran out.
    """
    buffers, config = runs[token].buffers, runs[token].config
    cadence = config.bins_every if every is None else every
    chosen = config.binning if binning is None else binning
    check_settings(label(name, items), chosen, cadence)
    _refuse_other_kind(buffers.scalar_series, "scalar", name, items)
    slot = buffers.histogram_series.slot(HistogramSeries(name, items, chosen), torch.compiler.is_compiling())
    return (slot, cadence, *chosen.parameters())


@torch.compiler.assume_constant_result
def counts_slot(token: str, name: str, items: ContextItems, bins: int, every: int | None) -> tuple[int, int]:
    """Return the slot and the cadence of a series of counts: a histogram of the integers below `bins`.

    Args:
        token: Token of the run.
        name: Name of the series.
        items: Its context.
        bins: How many counts there are.
        every: Its cadence in steps, or None for the one of the configuration.

    Raises:
        TrackerValueError: See ``histogram_slot``; or if there are no counts, or more than fit.
    """
    if not 1 <= bins <= CELLS - 2:
        raise TrackerValueError(f"{label(name, items)}: {bins} counts; pass 1 to {CELLS - 2}, or sums of neighbours")
    return histogram_slot(token, name, items, IntegerBinning(bins=bins), every)[:2]


def check_settings(what: str, binning: object, every: object) -> None:
    """Refuse what is no binning or no cadence.

    Args:
        what: What is being logged, for the message.
        binning: What was given as binning.
        every: What was given as cadence.

    Raises:
        TrackerTypeError: If the binning is none.
        TrackerValueError: If the cadence is no positive int.
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise TrackerValueError(f"{what}: every={every!r} is not a positive int; leave it out or pass 1")
    if not isinstance(binning, Binning):
        kind = type(binning).__name__
        raise TrackerTypeError(
            f"{what}: a binning is an ExponentialBinning, LinearBinning or IntegerBinning, not {kind}"
        )


def _refuse_other_kind(others: Registry[Any], method: str, name: str, items: ContextItems) -> None:
    if others.knows(name, items):
        raise TrackerValueError(
            f"{label(name, items)} was logged with {method} before, and some backends have room for one of them only; "
            "use another name or context for the other"
        )
