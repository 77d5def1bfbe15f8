"""Checkpoints of a job: one state per rank, and how they are divided among another number of ranks."""

import functools
import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from d9d_tracker.accumulator.host_window import HostWindow, contradictions, empty_window, merge_windows
from d9d_tracker.accumulator.scalars import LANES
from d9d_tracker.accumulator.state import Table, histogram_series, scalar_series

logger = logging.getLogger("d9d_tracker")


def wrap(state: dict[str, Any], rank: int, size: int) -> dict[str, Any]:
    """Return the state of one rank under a key of its own.

    ``torch.distributed.checkpoint`` keeps one copy of what several ranks save under the same key; with a key per rank
    it keeps all of them.

    Args:
        state: What this rank is to find again.
        rank: This rank.
        size: Number of ranks.
    """
    return {"world_size": size, "ranks": {str(rank): state}}


def saved_ranks(rank: int, size: int, saved_size: int) -> range:
    """Return which saved ranks' values a rank goes on with, so that each is taken once and their order stays.

    Args:
        rank: This rank.
        size: Number of ranks now.
        saved_size: Number of ranks that saved.
    """
    if size >= saved_size:
        return range(rank, min(rank + 1, saved_size))
    return range(rank * saved_size // size, (rank + 1) * saved_size // size)


def own_state(state: Any, rank: int, size: int) -> Any:
    """Return what a rank goes on with, from a state that any number of ranks saved.

    Args:
        state: A state of a single process, which rank 0 takes over, or of a job.
        rank: This rank.
        size: Number of ranks now.

    Returns:
        A state as of a single process.

    Raises:
        ValueError: If the states of the saved ranks that this one needs are not in it, or it is damaged.
    """
    if not isinstance(state, Mapping) or "ranks" not in state:
        return state if rank == 0 else _emptied(state)
    ranks, saved_size = state["ranks"], state.get("world_size")
    if not isinstance(ranks, Mapping) or not isinstance(saved_size, int):
        raise ValueError("the state of the tracker is damaged: it names no ranks")
    wanted = [str(saved) for saved in saved_ranks(rank, size, saved_size)]
    if set(wanted) <= set(ranks) and (wanted or "0" in ranks):
        return _merged([ranks[saved] for saved in wanted]) if wanted else _emptied(ranks["0"])
    if saved_size == size and set(ranks) == {"0"}:
        logger.warning(
            "the state holds the values of rank 0 alone: what rank %d logged in the unfinished window is not in it. "
            "Save with torch.distributed.checkpoint to keep the values of all ranks",
            rank,
        )
        return _emptied(ranks["0"])
    raise ValueError(
        f"the state was saved by {saved_size} ranks, this is rank {rank} of {size}, and the values it is to go on with "
        f"(saved ranks {', '.join(wanted) or '0'}) are not all here; load the checkpoint with "
        "d9d_tracker.distributed.load(tracker, checkpoint_id), which divides the saved ranks among the new ones"
    )


def _merged(states: list[Any]) -> Any:
    if len(states) == 1:
        return states[0]
    tables = [_table(state) for state in states]
    # At "window" resolution there is one row, and it is that of the current step.
    now = None if tables[0].resolution == "step" else max(table.step for table in tables)
    windows = [_window(state, table, now) for state, table in zip(states, tables, strict=True)]
    for window in windows[1:]:
        for words in contradictions(windows[0].scalars, window.scalars):
            logger.error("%s", words)
        for words in contradictions(windows[0].histograms, window.histograms):
            logger.error("%s", words)
    merged = functools.reduce(merge_windows, windows)
    table = tables[0].model_copy(
        update={
            "first": min(table.first for table in tables),
            "passed": max(len(merged.steps) - 1, *(table.passed for table in tables)),
            "windows": max(table.windows for table in tables),
        }
    )
    return _with_window(states[0], table, merged)


def _emptied(state: Any) -> Any:
    """Return a state at the same point of the run, without values."""
    table = _table(state)
    window = _window(state, table, None)
    nothing = empty_window(0, window.steps, window.scalars, window.histograms)
    table = table.model_copy(update={"tail_step": None, "tail_scalars": [], "tail_histograms": []})
    return _with_window(state, table, nothing) | {"kept": "[]"}


def _table(state: Any) -> Table:
    try:
        return Table.model_validate(json.loads(state["table"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the state of the tracker is damaged: {error!r}") from error


def _window(state: Any, table: Table, now: int | None) -> HostWindow:
    scalars = [scalar_series(*series) for series in table.scalars]
    histograms = [histogram_series(*series) for series in table.histograms]
    rows = len(table.filed)
    try:
        current = state["current"].cpu().numpy()[None, :, : len(scalars)]
        filed = state["window"].cpu().numpy()[:rows, :, : len(scalars)]
        return HostWindow(
            index=0,
            steps=[*table.filed, table.step if now is None else now],
            lanes=np.concatenate((filed, current)).reshape(rows + 1, LANES, len(scalars)),
            counts=state["counts"].cpu().numpy()[: len(histograms)],
            moments=state["moments"].cpu().numpy()[: len(histograms)],
            scalars=scalars,
            histograms=histograms,
        )
    except (KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"the state of the tracker is damaged: {error!r}") from error


def _with_window(state: Any, table: Table, window: HostWindow) -> dict[str, Any]:
    table = table.model_copy(
        update={
            "scalars": [(series.name, dict(series.context), series.reduce) for series in window.scalars],
            "histograms": [(series.name, dict(series.context), series.binning) for series in window.histograms],
            "step": window.steps[-1],
            "filed": window.steps[:-1],
        }
    )
    return {
        **state,
        "table": json.dumps(table.model_dump(mode="python")),
        "current": torch.from_numpy(window.lanes[-1].copy()),
        "window": torch.from_numpy(window.lanes[:-1].copy()),
        "counts": torch.from_numpy(window.counts.copy()),
        "moments": torch.from_numpy(window.moments.copy()),
    }
