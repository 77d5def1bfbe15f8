"""The state of a job is one per rank, by its number: which of them a rank goes on with, on any number of ranks."""

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from d9d_tracker.log import logger
from d9d_tracker.windows.host_window import contradictions, empty_window, merge_windows
from d9d_tracker.windows.late import Late
from d9d_tracker.windows.spread import completed, expand, merge_expanded, of_spread

from .assembly import State
from .checkpoint import Snapshot, read


def wrap(state: dict[str, Any], rank: int, size: int) -> dict[str, Any]:
    """Return the state of one rank under a key of its own: of the same key, a checkpoint keeps one rank's."""
    return {"world_size": size, "ranks": {str(rank): state}}


def saved_ranks(rank: int, size: int, saved_size: int) -> range:
    """Return which saved ranks' values a rank goes on with, so that each is taken once and their order stays."""
    if size >= saved_size:
        return range(rank, min(rank + 1, saved_size))
    return range(rank * saved_size // size, (rank + 1) * saved_size // size)


def read_own(state: Any, rank: int, size: int) -> Snapshot:
    """Read what a rank goes on with, from a state of any number of ranks; rank 0 takes over that of a single process.

    Raises ``ValueError`` if the states of the saved ranks that this one needs are not in it, or it is damaged.
    """
    if not isinstance(state, Mapping) or "ranks" not in state:
        snapshot = read(state)
        if rank > 0 and snapshot.holds_values:
            words = (
                "the state is that of a single process: rank 0 goes on with what was logged in its unfinished window, "
                "rank %d with nothing. Of several ranks, each has a state with its number in it"
            )
            logger.warning(words, rank)
        return _emptied(snapshot) if rank > 0 else snapshot
    ranks, saved_size = state["ranks"], state.get("world_size")
    if not isinstance(ranks, Mapping) or not isinstance(saved_size, int):
        raise ValueError("the state of the tracker is damaged: it names no ranks")
    wanted = [str(saved) for saved in saved_ranks(rank, size, saved_size)]
    if set(wanted) <= set(ranks) and (wanted or "0" in ranks):
        if not wanted:
            return _emptied(read(ranks["0"]))
        snapshots = {int(saved): read(ranks[saved]) for saved in wanted}
        is_same = list(snapshots) == [rank]
        return merged(list(snapshots.values()) if is_same else [_divided(one, q) for q, one in snapshots.items()])
    if saved_size == size and set(ranks) == {"0"}:
        words = (
            "the state holds the values of rank 0 alone: what rank %d logged in the unfinished window is not in it. "
            "Save with torch.distributed.checkpoint to keep the values of all ranks"
        )
        logger.warning(words, rank)
        return _emptied(read(ranks["0"]))
    raise ValueError(
        f"the state was saved by {saved_size} ranks, this is rank {rank} of {size}, and the values it is to go on with "
        f"(saved ranks {', '.join(wanted) or '0'}) are not all here; load the checkpoint with "
        "d9d_tracker.distributed.load(tracker, checkpoint_id), which divides the saved ranks among the new ones"
    )


def merged(snapshots: list[Snapshot]) -> Snapshot:
    """Return the states of several ranks as one, at the point of the one that was furthest."""
    first = snapshots[0]
    windows = [snapshot.window for snapshot in snapshots]
    if first.resolution == "window":  # there is one row, and it is that of the current step
        now = max(window.steps[-1] for window in windows)
        windows = [replace(window, steps=[*window.steps[:-1], now]) for window in windows]
    for window in windows[1:]:
        words = contradictions(windows[0].scalars, window.scalars)
        for one in words + contradictions(windows[0].histograms, window.histograms):
            logger.error("%s", one)
    window = functools.reduce(merge_windows, windows)
    lefts = [snapshot.left for snapshot in snapshots]
    expanded = [one.expanded for one in lefts if one.expanded is not None]
    held = [one.in_transit.held for one in lefts if one.in_transit.held is not None]
    together, waiting = (functools.reduce(merge_expanded, some) if some else None for some in (expanded, held))
    moving = [window for one in lefts for window in one.in_transit.windows]
    in_transit = replace(first.left.in_transit, windows=moving, held=waiting)
    late = Late([record for one in reversed(lefts) for record in one.late.records], first.left.late.hparams)
    return replace(
        first,
        window=window,
        left=replace(first.left, expanded=together, in_transit=in_transit, late=late),
        first=min(snapshot.first for snapshot in snapshots),
        passed=max(len(window.steps) - 1, *(snapshot.passed for snapshot in snapshots)),
        windows=max(snapshot.windows for snapshot in snapshots),
    )


def _divided(snapshot: Snapshot, rank: int) -> Snapshot:
    """Expand what a saved rank has logged to series of ``scope="spread"``: its number is not that of who goes on."""
    window, left, tail = snapshot.window, snapshot.left, snapshot.left.tail
    expanded = expand(of_spread(completed(window, tail), True), rank)
    if left.expanded is not None:
        expanded = merge_expanded(expanded, left.expanded)
    rest = of_spread(window, False)
    if tail is not None:
        tail = replace(tail, lanes={series: lanes for series, lanes in tail.lanes.items() if not series.spread})
    in_transit = replace(left.in_transit, let_go=-1)
    left = replace(left, tail=tail, expanded=expanded if expanded.scalars else None, in_transit=in_transit)
    return replace(snapshot, window=rest, left=left)


def _emptied(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot at the same point of the run, without values."""
    window, totals = snapshot.window, snapshot.left.totals
    nothing = empty_window(0, window.steps, window.times, window.scalars, window.histograms)
    return replace(snapshot, window=nothing, backend=replace(snapshot.backend, kept={}), left=State(totals=totals))
