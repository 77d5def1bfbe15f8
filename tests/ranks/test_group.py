"""Collectives of a group of our own: waited for in glances, given up at any time, and no process dies of it."""

import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from jobs import run_job
from programs import wait_for

from d9d_tracker.ranks.board import Board
from d9d_tracker.ranks.group import Group


def group(rank: int, look=lambda: None) -> Group:
    store = dist.group.WORLD.get_group_store()
    never = 1e5  # so that who waits for gloo's own limit is seen
    return Group(Board(store, "test").store, rank, dist.get_world_size(), never, look)


def collectives(rank: int, folder: Path) -> dict:
    one = group(rank)
    most, total, word = (torch.tensor([rank, -rank]) for _ in range(3))
    one.all_reduce_max(most)
    one.reduce_sum(total)
    one.broadcast(word)
    found = {
        "all": [part.tolist() for part in one.all_gather(torch.tensor([rank]))],
        "bytes": one.all_gather_bytes(b"x" * rank),
        "most": most.tolist(),
        "sum": total.tolist() if rank == 0 else None,
        "word": word.tolist(),
        "gathered": [part.tolist() for part in one.gather(torch.tensor([rank]))],
    }
    one.close()
    return found


def test_each_of_them(tmp_path):
    for rank, outcome in enumerate(run_job(collectives, 3, tmp_path)):
        assert outcome.result == {
            "all": [[0], [1], [2]],
            "bytes": [b"", b"x", b"xx"],
            "most": [2, 0],
            "sum": [3, -3] if rank == 0 else None,
            "word": [0, 0],
            "gathered": [[0], [1], [2]] if rank == 0 else [],
        }


class EnoughError(Exception):
    pass


def gives_up(rank: int, folder: Path, how: str) -> str:
    """Rank 1 does not come to the second collective, and lives longer than rank 0."""
    is_enough = False

    def look():
        if is_enough:
            raise EnoughError

    one = group(rank, look)
    one.all_gather(torch.tensor([rank]))
    if rank == 1:
        wait_for(folder / "result-0-0")
        return ""
    if how == "given up":
        is_enough = True
        with pytest.raises(EnoughError):
            one.all_gather(torch.tensor([rank]))
        one.close()
    else:  # the process ends while a thread still waits
        threading.Thread(target=one.all_gather, args=[torch.tensor([rank])], daemon=True).start()
    return how


@pytest.mark.parametrize("how", ["given up", "waits"])
def test_a_process_that_ends_while_others_are_waited_for_has_its_own_exit_code(tmp_path, how):
    assert run_job(gives_up, 2, tmp_path, how)[0].result == how  # and exit code 0


def is_gone(rank: int, folder: Path) -> str:
    one = group(rank)
    one.all_gather(torch.tensor([rank]))  # both are connected
    if rank == 1:
        one.close()
        return ""
    with pytest.raises(RuntimeError):
        one.all_gather(torch.tensor([rank]))
    return "raised"


def test_one_who_is_gone_is_an_error(tmp_path):
    assert run_job(is_gone, 2, tmp_path)[0].result == "raised"


def test_its_last_collectives_are_kept_until_it_is_closed(monkeypatch):
    """So that no thread of gloo's is the last to let go of a tensor."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    one, tensors = Group(dist.HashStore(), 0, 1, 20.0, lambda: None), [torch.tensor([step]) for step in range(9)]
    for tensor in tensors:
        one.broadcast(tensor)
    assert [id(kept) for _, (kept,) in one._recent] == [*map(id, tensors[-4:])]
    one.close()
    assert not one._recent
