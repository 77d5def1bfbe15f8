"""The interpreter ends while threads of ours are in the store: no process dies of it."""

import threading
import time
from pathlib import Path

import torch.distributed as dist
from jobs import run_job

from d9d_tracker.ranks import native_calls
from d9d_tracker.ranks.board import Board


def ends_in_the_middle(rank: int, folder: Path) -> int:
    board, looks = Board(dist.FileStore(str(folder / "store"), 1), "board"), [0]

    def look() -> None:
        while True:
            board.get("key")
            looks[0] += 1

    for _ in range(4):
        threading.Thread(target=look, daemon=True).start()
    while looks[0] < 100:
        time.sleep(0.01)
    return looks[0]


def test_threads_that_are_in_the_store_as_the_interpreter_ends(tmp_path):
    (outcome,) = run_job(ends_in_the_middle, 1, tmp_path)  # which has seen the exit code
    assert outcome.result >= 100


def test_the_end_waits_for_who_is_inside():
    entered, leaves = threading.Event(), threading.Event()

    def visit() -> None:
        with native_calls.native_call():
            entered.set()
            leaves.wait()

    threading.Thread(target=visit).start()
    entered.wait()
    end = threading.Thread(target=native_calls._end)
    end.start()
    try:
        end.join(0.1)  # at once, if it did not wait
        assert end.is_alive()
        leaves.set()
        end.join()
        assert not native_calls._inside
    finally:
        leaves.set()
        native_calls._begin()
