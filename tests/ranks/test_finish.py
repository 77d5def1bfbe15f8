"""Waiting for a collective: gloo's threads are not the last to hold what Python made."""

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from jobs import run_job

import d9d_tracker.ranks
from d9d_tracker.ranks import finish as module
from d9d_tracker.ranks.exchange import exchange
from d9d_tracker.ranks.finish import finish

SOURCES = sorted(Path(d9d_tracker.ranks.__file__).parent.glob("*.py"))


def waits(rank: int, folder: Path) -> dict:
    tensor = torch.tensor([rank + 1])
    work = dist.all_reduce(tensor, async_op=True)
    finish(work)
    first = module._kept[-1]
    for _ in range(8):
        exchange(rank, dist.group.WORLD)
    finish(None)
    return {"sum": tensor.item(), "is_work": first is work, "done": work.is_completed(), "kept": len(module._kept)}


def test_the_last_collectives_are_kept_and_no_more(tmp_path):
    for outcome in run_job(waits, 2, tmp_path):
        assert outcome.result == {"sum": 3, "is_work": True, "done": True, "kept": 4}


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_every_collective_of_the_ranks_is_waited_for_here(source):
    calls = re.findall(r"^.*\bdist\.(?:all_|reduce\(|gather\(|broadcast|barrier|scatter).*$", source.read_text(), re.M)
    assert all(call.strip().startswith("finish(dist.") and "async_op=True" in call for call in calls), calls
