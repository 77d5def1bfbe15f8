"""Opening a run in a store with what dead ranks have written: torchrun keeps it when it restarts a job."""

import threading
from typing import Any

import pytest
import torch.distributed as dist

from d9d_tracker.errors import TrackerValueError
from d9d_tracker.ranks.job import Job

SETTINGS = {"accumulator.sync_every": 10}


def open_both(store: Any, settings: dict[str, Any], opened: str) -> list[Any]:
    found: list[Any] = [None, None]

    def follow() -> None:
        member = Job([0, 1], 1, store, 20.0)
        found[1] = member.open(settings, dict), member._number

    thread = threading.Thread(target=follow)
    thread.start()
    lead = Job([0, 1], 0, store, 20.0)
    found[0] = lead.open(settings, lambda: {"run_id": opened}), lead._number
    thread.join()
    return found


@pytest.mark.parametrize("died", ["before rank 0 had called", "before it had answered", "after it had answered"])
def test_what_the_dead_have_written_opens_no_run(died):
    store = dist.HashStore()
    board = Job([0, 1], 0, store, 20.0)._board
    if died != "after it had answered":
        board.put("open", "dead")
    if died != "before rank 0 had called":
        board.put("call/dead/1", {"accumulator.sync_every": 7})
    if died == "after it had answered":
        board.put("answer/dead", {"error": None, "opened": {"run_id": "dead"}})
    (first, number), (second, other) = open_both(store, SETTINGS, "alive")
    assert first == second == {"run_id": "alive"}
    assert number == other != "dead"


def test_what_others_may_be_about_to_read_is_not_removed():
    """Who has seen a key waits in the store until it is back."""
    store = dist.HashStore()
    board = Job([0, 1], 0, store, 20.0)._board
    open_both(store, SETTINGS, "alive")
    assert board.store.check(["open"])
    assert board.get("open") is None
    board.put("open", "left")
    with pytest.raises(TrackerValueError, match="waited for rank 0, which waits for all"):
        Job([0, 1], 1, store, 0.2).open(SETTINGS, dict)
    assert board.store.check(["call/left/1"])
    assert board.get("call/left/1") is None


def test_the_next_run_has_a_number_of_its_own():
    store = dist.HashStore()
    first, second = (open_both(store, SETTINGS, name) for name in ("first", "second"))
    assert [one for one, _ in first] == [{"run_id": "first"}] * 2
    assert [one for one, _ in second] == [{"run_id": "second"}] * 2
    assert first[0][1] != second[0][1]
