"""What a rank of a job of ``test_soak`` does: it logs, and leaves, stalls, raises, flushes or dies as planned."""

import json
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from jobs import NAME
from programs import jsonl_tracker

from d9d_tracker import distributed


def logs(plan: dict[str, Any], rank: int, step: int) -> bool:
    """Return whether a rank takes part in a step."""
    return rank != plan["skips"] or step % 3 != 1


def live(rank: int, folder: Path, plan: dict[str, Any], life: int) -> None:
    logging.getLogger("d9d_tracker").addHandler(logging.FileHandler(folder / f"log-{life}-{rank}"))
    one = jsonl_tracker(folder, **plan["config"])
    resume = plan["resume"]
    if life:
        distributed.load(one, folder / "checkpoint")
    events = {} if life else {step: (kind, seconds) for kind, step, seconds in plan["events"][rank]}
    try:
        with one.open(NAME) as run:
            for step in range(resume["save"] if life else 0, plan["steps"]):
                kind, seconds = events.get(step, ("", 0.0))
                if resume and not life and step == resume["save"]:
                    dcp.save({"tracker": one}, checkpoint_id=folder / "checkpoint")
                if logs(plan, rank, step):
                    run.set_step(step)
                    run.scalar("sum", 4.0**rank, reduce="sum")
                    run.scalar("own", 4.0**rank, scope="rank")
                    run.bins("h", torch.full((1,), 2.0**rank))
                if kind == "stall":
                    time.sleep(seconds)
                elif kind == "flush":
                    run.flush()
                elif kind == "leave":
                    break
                elif kind == "raise":
                    raise ZeroDivisionError
                elif kind == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(plan["pace"])
    finally:
        found = {"missing": one.report.missing, "unread": one.report.unread}
        (folder / f"report-{life}-{rank}").write_text(json.dumps(found))
