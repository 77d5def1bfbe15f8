"""Jobs whose ranks leave, stall, raise, are killed and resumed at random: each value is there once, or named.

``make test-soak SEEDS=20`` runs as many, and prints each plan. ``FIRST`` is the first seed.
"""

import json
import os
import random
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from jobs import LOCALHOST, Job
from soak import live, logs

import d9d_tracker

FIRST, SEEDS = int(os.environ.get("FIRST", "0")), int(os.environ.get("SEEDS", "20"))
CODES = {"kill": -9, "raise": 1}


def planned(seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    size, steps = draw.randint(2, 4), draw.randint(20, 40)
    resume = None
    if draw.random() < 0.3:
        save = draw.randint(5, steps - 8)
        resume = {"save": save, "kill": draw.randint(save + 1, steps - 2)}
    events: list[list[tuple[str, int, float]]] = []
    for _ in range(size):
        kinds = ["", "flush", "stall", *(["leave", "raise", "kill"] if resume is None else [])]
        mine = [(draw.choice(kinds), draw.randrange(1, steps), draw.choice([1.0, 5.0, 9.0])) for _ in range(2)]
        if resume is not None:
            mine = [one for one in mine if one[1] != resume["kill"]] + [("kill", resume["kill"], 0.0)]
        events.append(mine)
    return {
        "sizes": [size, draw.randint(1, 4)],
        "steps": steps,
        "resume": resume,
        "events": events,
        "skips": draw.choice([-1, *range(size)]),
        "config": {
            "sync_every": draw.choice([1, 4, 7]),
            "flush_timeout": draw.choice([0.5, 3.0, 20.0]),
            "distributed_timeout": draw.choice([2.0, 2.0, 20.0]),
        },
        "store": draw.choice(["file", "agent", "rank 0"]),
        "pace": draw.choice([0.01, 0.2]),
    }


def run(plan: dict[str, Any], life: int, folder: Path) -> list[int | None]:
    """Run a life of the job; return the exit codes of its ranks."""
    server, where = None, None  # a file
    if plan["store"] == "agent":
        server = dist.TCPStore(LOCALHOST, 0, None, True, wait_for_workers=False)
        where = f"agent:{server.port}"
    elif plan["store"] == "rank 0":
        with socket.socket() as free:
            free.bind((LOCALHOST, 0))
            where = f"tcp://{LOCALHOST}:{free.getsockname()[1]}"
    with Job(live, plan["sizes"][life], folder, plan, life, rendezvous=where) as job:
        return [outcome.exit_code for outcome in job.outcomes()]


def end(plan: dict[str, Any], rank: int) -> tuple[str, int]:
    """Return how a rank's first life ends, and before which step."""
    ends = [(step, kind) for kind, step, _ in plan["events"][rank] if kind in ("leave", "raise", "kill")]
    # Of two events of one step, the last one counts, as in a dict.
    last = {step: kind for kind, step, _ in plan["events"][rank]}
    ends = [(step, kind) for step, kind in ends if last[step] == kind]
    step, kind = min(ends, default=(plan["steps"] - 1, ""))
    return kind, step + 1


def named(words: list[str]) -> set[tuple[int, int]]:
    """Return the ranks and steps that are named as missing."""
    found = set()
    for line in words:
        match = re.fullmatch(r"ranks? ([\d\-, ]+): (?:steps (\d+) to (\d+)|from step (\d+) on)", line)
        assert match, line
        steps = range(int(match[2] or match[4]), int(match[3] or 99) + 1)
        for part in match[1].split(", "):
            least, _, most = part.partition("-")
            found |= {(rank, step) for rank in range(int(least), int(most or least) + 1) for step in steps}
    return found


def said(folder: Path, life: int, size: int) -> set[tuple[int, int]]:
    """Return the ranks and steps that the logs of the ranks say are missing, each rank of itself, rank 0 of all."""
    words = []
    for rank in range(size):
        log = (folder / f"log-{life}-{rank}").read_text()
        own = re.findall(r"what (this rank) logs from step (\d+) on", log)
        others = re.findall(r"no values from (ranks? [^(]+) \(.*from step (\d+) on", log)
        others += re.findall(r"closed while (ranks? .+) still log: .* from step (\d+) on", log)
        words += [f"{who.replace('this rank', f'rank {rank}')}: from step {step} on" for who, step in own + others]
    return named(words)


def check(plan: dict[str, Any], folder: Path) -> None:
    size, life = plan["sizes"][0], int(plan["resume"] is not None)
    (run,) = d9d_tracker.read(folder / "runs")
    found = run.scalars("sum", {}) if any(series.name == "sum" for series in run.series()) else None
    sums = {} if found is None else dict(zip(found.steps.tolist(), found.values.tolist(), strict=True))
    began = plan["resume"]["save"] if life else plan["steps"]
    missing = said(folder, 0, size)
    if not life and end(plan, 0)[0] != "kill":
        report = json.loads((folder / "report-0-0").read_text())
        print("missing:", report["missing"])
        by_rank_0 = named(report["missing"])
        # What rank 0 leaves by an error, the others say; else it names all.
        missing = by_rank_0 if end(plan, 0)[0] != "raise" else missing | by_rank_0
    is_whole = not any(kind == "kill" for kind, _ in [end(plan, 0)]) or life
    for step in range(plan["steps"]):
        ranks = range(plan["sizes"][life if step >= began else 0])
        digits = int(sums.get(step, 0.0))
        there = {rank: digits // 4**rank % 4 for rank in range(5)}
        for rank in range(5):
            logged = rank in ranks and logs(plan, rank, step) and (step >= began or step < end(plan, rank)[1] or life)
            own = run.scalars("own", {"rank": str(rank)}) if there[rank] else None
            assert own is None or step in own.steps.tolist(), (rank, step, "own")
            if there[rank] == logged:
                continue
            assert there[rank] == 0, (rank, step, digits, "is there more often than it was logged")
            assert step < began, (rank, step, "is missing after the resume")
            if not is_whole and step not in sums:
                continue  # rank 0 had it, and died with it
            assert (rank, step) in missing, (rank, step, digits, "is missing and not named")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_each_value_is_there_once_or_named(tmp_path, seed):
    plan = planned(seed)
    print(f"seed {seed}:", json.dumps(plan))
    try:
        size = plan["sizes"][0]
        assert run(plan, 0, tmp_path) == [CODES.get(end(plan, rank)[0], 0) for rank in range(size)]
        if plan["resume"]:
            assert run(plan, 1, tmp_path) == [0] * plan["sizes"][1]
        check(plan, tmp_path)
    except BaseException:
        for path in sorted(tmp_path.glob("log-*")):
            print(f"--- {path.name}\n{path.read_text()}")
        raise
