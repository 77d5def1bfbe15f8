"""A member hears the lead and answers; a store that is a file does not grow while nobody asks."""

import pytest
import torch.distributed as dist

from d9d_tracker.ranks.board import Board, BoardLostError, period
from d9d_tracker.ranks.pulse import Pulse


@pytest.fixture
def board(tmp_path):
    return Board(dist.FileStore(str(tmp_path / "store"), 2), "run")


@pytest.fixture
def pulse(board):
    one = Pulse(board, 1, period=1000.0)
    yield one
    one.close()
    assert not one._thread.is_alive()


def test_it_answers_when_it_is_asked_and_only_then(board, pulse, tmp_path):
    board.put("lead", {"generation": 3, "ask": 0, "over": False})
    size = (tmp_path / "store").stat().st_size
    for _ in range(20):
        pulse.beat()
    assert (tmp_path / "store").stat().st_size == size
    assert pulse.lead["generation"] == 3
    assert board.get("answer/1") is None
    pulse.know(waits=True)
    board.put("lead", {"generation": 3, "ask": 7, "over": False})
    for _ in range(20):
        pulse.beat()
    answer = board.get("answer/1")
    assert (answer["ask"], answer["waits"], answer["left"]) == (7, True, False)


def test_a_store_that_is_gone(pulse):
    class Gone:
        def check(self, keys):
            raise RuntimeError("Broken pipe\nat frame 0")

    pulse._board.store = Gone()
    pulse.beat()
    assert pulse.is_cut_off
    with pytest.raises(BoardLostError, match=r"^Broken pipe$"):
        pulse._board.get("lead")


@pytest.mark.parametrize(("size", "seconds"), [(2, 1.0), (500, 1.0), (4096, 8.192)])
def test_the_store_of_a_large_job_is_looked_at_less_often(size, seconds):
    assert period(size) == seconds
