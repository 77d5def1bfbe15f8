"""What the ranks of the test jobs do. Values are such that sums are exact in any order."""

import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from jobs import NAME, content, tracker

from d9d_tracker import (
    AccumulatingRun,
    AccumulatingTracker,
    AccumulatorConfig,
    JsonlTrackerConfig,
    TrackerValueError,
    distributed,
    tracker_from_config,
)
from d9d_tracker.pipeline import pipeline
from d9d_tracker.ranks import job
from d9d_tracker.ranks.group import Group

REDUCTIONS = ("mean", "sum", "min", "max", "last")


def value(rank: int, step: int) -> float:
    """A value that differs between ranks and steps."""
    return ((rank * 7 + step * 13) % 101 - 50) / 4


def population(rank: int, step: int) -> torch.Tensor:
    """A population that differs between ranks and steps, in size too, and holds everything special."""
    values = torch.tensor([value(rank, step + number) for number in range(20 + rank)])
    values[step % 20] = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0])[(rank + step) % 4]
    return values


def tokens(rank: int, step: int) -> torch.Tensor:
    """How many tokens each of four experts got."""
    return torch.arange(4) * (1 + rank) + step % 3


def log(run: AccumulatingRun, rank: int, step: int, scopes: bool = True) -> None:
    for reduce in REDUCTIONS:
        run.scalar(reduce, torch.tensor(value(rank, step)), reduce=reduce)
        run.scalar(reduce, value(rank, step + 1000), reduce=reduce)
    run.scalar("weighted", value(rank, step), weight=1 + rank)
    run.bins("population", population(rank, step))
    if scopes:
        run.counts("tokens", tokens(rank, step))
        run.scalar("memory", value(rank, step), scope="rank")
        run.bins("of each rank", population(rank, step), scope="rank")


def everything(rank: int, folder: Path, steps: int, config: dict) -> dict:
    one = tracker(folder, **config)
    with one.open(NAME) as run:
        for step in range(steps):
            run.set_step(step)
            log(run, rank, step)
            if step == steps // 2:
                run.flush()
                log(run, rank, step + 2000)  # merges with what was written
    return {
        "content": content(one, rewritten=True),
        "runs": len(one._tracker.runs),
        "run_id": one.run_id,
        "copies": one.copies,
    }


def one_sum(rank: int, folder: Path) -> dict:
    one = tracker(folder)
    with one.open(NAME) as run:
        run.scalar("sum", 2.0**rank, reduce="sum")
    return content(one)


def differing(rank: int, folder: Path) -> dict:
    """Series of some ranks only, in another order, in a later window, and not in every step."""
    one = tracker(folder, sync_every=5)
    with one.open(NAME) as run:
        run.set_context({"stage": "train"})
        for step in range(20):
            run.set_step(step)
            for name in ("a", "b") if rank % 2 else ("b", "a"):
                run.scalar(name, 2.0**rank, reduce="sum")
            if step >= 5 * rank:
                run.scalar("late", 2.0**rank, reduce="sum")
                run.bins("late bins", torch.ones(1 + rank))
            run.scalar("stage", 1.0, {"pipeline": str(rank // 2)}, reduce="sum")
            if step % (rank + 1) == 0:
                run.scalar("sometimes", 2.0**rank, reduce="sum")
    return content(one)


def refused(rank: int, folder: Path, configs: list[dict], fail: str = "") -> str:
    one = tracker(folder, **configs[rank])
    if fail:
        one._tracker.open = lambda properties: (_ for _ in ()).throw(ValueError(fail))
    try:
        with one.open(NAME):
            return "opened"
    except ValueError as error:
        return f"{type(error).__name__}: {error}"


def opens_late(rank: int, folder: Path, who: int) -> tuple[str, dict]:
    """One rank opens the run when another has waited in vain, and said so; then all try again."""
    job._SAY_SECONDS = 0.2
    one, words = tracker(folder, distributed_timeout=1.0), ""
    if rank == who:
        wait_for(folder / f"raised-{1 - who}")
    else:
        try:
            with one.open(NAME):
                words = "opened"
        except TrackerValueError as error:
            words = str(error)
        (folder / f"raised-{rank}").touch()
    one = tracker(folder, distributed_timeout=20.0)
    with one.open(NAME) as run:
        run.scalar("sum", 2.0**rank, reduce="sum")
    return words, content(one)


def groups(rank: int, folder: Path, how: str) -> dict:
    """Every pair of ranks shares a run, or none does."""
    if how == "off":
        one = tracker(folder / str(rank), distributed="off")
    else:
        pairs = [dist.new_group([first, first + 1], backend="gloo") for first in range(0, dist.get_world_size(), 2)]
        one = tracker(folder / str(rank), lambda: pairs[rank // 2])
    with one.open(NAME) as run:
        run.scalar("sum", 2.0**rank, reduce="sum")
        run.scalar("own", 2.0**rank, scope="rank")
    return content(one)


def two_runs(rank: int, folder: Path) -> dict:
    """Two trackers at once, then the first one again."""
    one, other = tracker(folder), tracker(folder)
    with one.open(NAME) as run, other.open(NAME) as another:
        run.scalar("a", 2.0**rank, reduce="sum")
        another.scalar("b", 2.0**rank, reduce="sum")
    first = {**content(one), **content(other)}
    one._tracker.runs.clear()
    with one.open(NAME) as run:
        run.scalar("c", 2.0**rank, reduce="sum")
    return {**first, **content(one)}


def no_collectives(rank: int, folder: Path) -> tuple[int, int]:
    """Return how many collectives the test itself issued, and the tracker, in torch's groups."""
    calls = []
    for name in ("all_reduce", "all_gather", "all_gather_object", "broadcast", "barrier", "gather", "reduce", "send"):
        original = getattr(dist, name)

        def counted(*arguments, _original=original, _name=name, **options):
            calls.append(_name)
            return _original(*arguments, **options)

        setattr(dist, name, counted)
    dist.barrier()
    counted = len(calls)
    one = tracker(folder, sync_every=2)
    with one.open(NAME) as run:
        for step in range(10):
            run.set_step(step)
            log(run, rank, step)
        run.flush()
        one.state_dict()
    return counted, len(calls) - counted


def wait_for(path: Path) -> None:
    """Wait until another rank has left a file."""
    while not path.exists():
        time.sleep(0.01)


def stays_away(rank: int, folder: Path, who: int) -> dict:
    """One rank stays away in the second window until the others have given it up, and comes back."""
    one = tracker(folder, sync_every=4, distributed_timeout=1.0)
    with one.open(NAME) as run:
        ranks = one._pipeline.assembly.ranks
        for step in range(40):
            run.set_step(step)
            run.scalar("sum", 2.0**rank, reduce="sum")
            run.scalar("whose", float(rank), scope="spread")
            if step == 5 and rank == who:
                for other in {0, 1, 2} - {who}:
                    wait_for(folder / f"alone-{other}")
            if step == 12 and rank != who:
                while not (who in ranks._away if rank == 0 else ranks.lost_since is not None or who != 0):
                    time.sleep(0.01)
                (folder / f"alone-{rank}").touch()
            if step == 20:
                while rank == who != 0 and ranks._pulse._answer["back"] < 1:
                    time.sleep(0.01)
                dist.barrier()
                while rank > who == 0 and ranks._pulse.lead["generation"] < 2:
                    time.sleep(0.01)
    return {"found": content(one), "missing": one.report.missing, "unread": one.report.unread}


def leaves(rank: int, folder: Path, who: int, steps: int, config: dict) -> dict:
    """One rank has less data than the others; a member has closed before they have come to its last window."""
    one = tracker(folder, sync_every=4, **config)
    with one.open(NAME) as run:
        for step in range(steps if rank == who else 30):
            run.set_step(step)
            run.scalar("sum", 2.0**rank, reduce="sum")
            run.scalar("whose", float(rank), scope="spread")
            run.bins("h", torch.ones(1))
            if step == 4 and rank != who and who > 0:
                wait_for(folder / "closed")
            while rank == 0 and step == 20 and who in one._pipeline.assembly.ranks._others:  # seen before it closes too
                time.sleep(0.01)
    if rank == who:
        (folder / "closed").touch()
    return {"found": content(one), "missing": one.report.missing, "unread": one.report.unread}


def rank_0_evaluates(rank: int, folder: Path) -> dict:
    """The others close and are done while rank 0 is still busy inside the run."""
    one = tracker(folder, flush_timeout=1.0)
    with one.open(NAME) as run:
        for step in range(13):
            run.set_step(step)
            run.scalar("sum", 2.0**rank, reduce="sum")
            run.bins("h", torch.ones(1))
            run.scalar("own", 2.0**rank, scope="rank")
            run.scalar("bad", float("nan") if (rank, step) == (2, 12) else 1.0)
        if rank == 0:
            wait_for(folder / "closed-1")
            wait_for(folder / "closed-2")
            run.scalar("accuracy", 0.5)
    (folder / f"closed-{rank}").touch()
    return {"found": content(one), "unread": one.report.unread, "nonfinite": one.report.nonfinite}


def rank_0_raises(rank: int, folder: Path) -> dict:
    """Rank 0 raises in the middle, and its process ends; the others train on."""
    one = tracker(folder, sync_every=4)
    try:
        with one.open(NAME) as run:
            for step in range(20):
                run.set_step(step)
                run.scalar("sum", 2.0**rank, reduce="sum")
                if step == 9:
                    if rank == 0:
                        raise ZeroDivisionError
                    wait_for(folder / "closed")
    except ZeroDivisionError:
        (folder / "closed").touch()
    return {"found": content(one), "missing": one.report.missing, "unread": one.report.unread}


def training_group(rank: int, folder: Path) -> dict:
    """The group of the tracker is the one that training uses too; and it is destroyed before the run is closed."""
    one = tracker(folder, lambda: dist.group.WORLD, sync_every=2)
    wrong = 0
    size = dist.get_world_size()
    with one.open(NAME) as run:
        for step in range(50):
            run.set_step(step)
            run.scalar("sum", 2.0**rank, reduce="sum")
            gradient = torch.full((10,), float(step + rank))
            dist.all_reduce(gradient)
            wrong += gradient.ne(size * step + size * (size - 1) / 2).any().item()
        dist.barrier()
        dist.destroy_process_group()
        run.set_step(50)
        run.scalar("sum", 2.0**rank, reduce="sum")
    return {"found": content(one), "wrong": wrong}


def uneven(rank: int, folder: Path) -> dict:
    """Every rank has another number of steps in its last window, and one leaves whole windows earlier."""
    one = tracker(folder, sync_every=4)
    with one.open(NAME) as run:
        for step in range({0: 10, 1: 11, 2: 9, 3: 5}[rank]):
            run.set_step(step)
            run.scalar("sum", 2.0**rank, reduce="sum")
            run.bins("h", torch.ones(1))
    return content(one)


def skipping(rank: int, folder: Path) -> dict:
    """Rank 1 is out of data in each epoch three steps earlier, and goes on with the others' step number."""
    one = tracker(folder, sync_every=5)
    with one.open(NAME) as run:
        for step in range(40):
            if rank == 1 and step % 10 >= 7:
                continue
            run.set_step(step)
            run.scalar("sum", 2.0**rank, reduce="sum")
    return content(one)


def disturbed(rank: int, folder: Path, config: dict) -> dict:
    """In the middle of the third window, with the first two written, wait for what the test does to a rank."""
    one = tracker(folder, sync_every=4, **config)
    with one.open(NAME) as run:
        for step in range(24):
            run.set_step(step)
            run.scalar("sum", 2.0**rank, reduce="sum")
            run.bins("h", torch.ones(1))
            if step == 10:
                while rank == 0 and ("sum", (), 7) not in content(one):
                    time.sleep(0.01)
                if rank == 0:
                    (folder / "ready").touch()  # the first two windows are written
                while not (folder / "go").exists():
                    time.sleep(0.01)
        (folder / f"trained-{rank}").touch()
    return {**content(one), "unread": one.report.unread, "missing": one.report.missing}


def dies_before_it_hears(rank: int, folder: Path) -> dict:
    """Rank 2 is gone when its second window has arrived, before it hears of it, as rank 1 does."""
    broadcast, heard = Group.broadcast, []

    def hear(group, tensor):
        heard.append(tensor)
        if rank == 2 and len(heard) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        broadcast(group, tensor)

    Group.broadcast = hear
    one = tracker(folder, sync_every=4, distributed_timeout=5.0)
    with one.open(NAME) as run:
        for step in range(16):
            run.set_step(step)
            run.scalar("sum", 2.0**rank, reduce="sum")
    return content(one)


def exits_in_the_middle(rank: int, folder: Path) -> dict:
    """Rank 1 leaves by an exception of its own."""
    one = tracker(folder, sync_every=4)
    try:
        with one.open(NAME) as run:
            for step in range(12):
                run.set_step(step)
                run.scalar("sum", 2.0**rank, reduce="sum")
                if rank == 1 and step == 5:
                    raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    return content(one)


def stops_itself(rank: int, folder: Path) -> None:
    """The process of rank 1 is gone without a word right after a window was closed."""
    one = tracker(folder, sync_every=1, distributed_timeout=5.0)
    with one.open(NAME) as run:
        for step in range(5):
            run.set_step(step)
            run.scalar("sum", 1.0)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


SHARDS = 12


def shards(rank: int, size: int) -> range:
    """The shards of the data that a rank reads; together the same ones in the same order on any number of ranks."""
    return range(rank * SHARDS // size, (rank + 1) * SHARDS // size)


def life(
    rank: int,
    folder: Path,
    steps: range,
    save_before: int | None = None,
    load: str | None = None,
    flush_in: int | None = None,
    saves_in_flush: bool = False,
) -> str | None:
    """Train some steps, from a checkpoint or from the beginning.

    A life that saves, before a step or in the middle of the step that it flushes in, logs a few steps more and is gone
    without a word.
    """
    saved_in = flush_in if saves_in_flush else save_before
    size = dist.get_world_size() if dist.is_initialized() else 1
    one = jsonl_tracker(folder)
    try:
        if load == "plain":
            dcp.load({"tracker": one}, checkpoint_id=folder / "checkpoint")
        elif load == "helper":
            distributed.load(one, folder / "checkpoint")
        elif load == "rank 0":
            one.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    except (ValueError, dcp.CheckpointException) as error:
        return str(error)
    with one.open(NAME) as run:
        for step in steps:
            run.set_step(step)
            if step == save_before:
                dcp.save({"tracker": one}, checkpoint_id=folder / "checkpoint")
                if rank == 0:
                    torch.save(one.state_dict(), folder / "state.pt")
            for shard in shards(rank, size):
                log(run, shard, step, scopes=False)
            if step == flush_in:
                run.flush()
                for shard in shards(rank, size):
                    log(run, shard, step + 2000, scopes=False)
                if saves_in_flush:
                    dcp.save({"tracker": one}, checkpoint_id=folder / "checkpoint")
            if saved_in is not None and step == saved_in + 7:
                run.flush()
                os._exit(0)
    return None


def jsonl_tracker(folder: Path, **more: Any) -> AccumulatingTracker:
    config = AccumulatorConfig(
        device="cpu",
        backlog_dir=folder / "backlog",
        max_scalars=32,
        max_histograms=8,
        **({"sync_every": 10, "distributed_timeout": 20.0} | more),
    )
    return tracker_from_config(JsonlTrackerConfig(path=folder / "runs", accumulator=config))


def saves_alone(rank: int, folder: Path) -> dict:
    """Only rank 0 takes states, while the others train on."""
    one = tracker(folder, sync_every=3)
    sizes = []
    with one.open(NAME) as run:
        for step in range(12):
            run.set_step(step)
            run.scalar("sum", 2.0**rank, reduce="sum")
            if rank == 0:
                torch.save(one.state_dict(), folder / "state.pt")
                sizes.append((folder / "state.pt").stat().st_size)
            dist.barrier()
    return content(one)


def refuses_to_load(rank: int, folder: Path) -> str:
    """One rank loads and the others do not."""
    one = tracker(folder)
    with one.open(NAME) as run:
        run.scalar("a", 1.0)
        state = one.state_dict()
    fresh = tracker(folder)
    if rank == 0:
        fresh.load_state_dict(state)
    try:
        with fresh.open(NAME):
            return "opened"
    except TrackerValueError as error:
        return str(error)


def spread(rank: int, folder: Path, resolution: str) -> dict:
    """Time and memory of a rank, which is the slowest in its own step; one sees a NaN; one logs in some steps only."""
    one = tracker(folder, sync_every=4, scalar_resolution=resolution)
    with one.open(NAME) as run:
        run.set_context({"stage": "train"})
        for step in range(8):
            run.set_step(step)
            run.scalar(
                "seconds", torch.tensor(10.0 if step % dist.get_world_size() == rank else rank / 4), scope="spread"
            )
            run.scalar("loss", float("nan") if (rank, step) == (1, 5) else 1.0, scope="spread")
            if step % 2 == 0 and rank > 0:
                run.scalar("negative", -float(rank), {"part": "head"}, scope="spread")
            run.scalar("stage loss", float(step)) if rank == dist.get_world_size() - 1 else None
    return content(one)


def spread_over_lives(rank: int, folder: Path, life: int, resolution: str, flushes: bool) -> dict | None:
    """Four ranks save in the middle of a window, and perhaps of a step; then others go on."""
    one = jsonl_tracker(folder, scalar_resolution=resolution)
    if life:
        distributed.load(one, folder / "checkpoint")
    with one.open(NAME) as run:
        for step in range(5, 12) if life else range(5):
            run.set_step(step)
            run.scalar("seconds", 10.0 * rank, scope="spread")
            run.scalar("loss", float("nan") if (rank, step) == (1, 2) else float(rank), scope="spread")
            if step == 4 and not life:
                if flushes:
                    run.flush()
                run.scalar("seconds", 10.0 * rank, scope="spread")
                dcp.save({"tracker": one}, checkpoint_id=folder / "checkpoint")
                os._exit(0)
    return None


def skips_over_lives(rank: int, folder: Path, life: int, size: int, saves_at: int) -> list[str]:
    """Of every two steps the last rank skips one, so that its windows are behind; saved, killed, and gone on with."""
    one = jsonl_tracker(folder, sync_every=4)
    if life:
        distributed.load(one, folder / "checkpoint")
    shared = range(rank, size, one.world_size) if life else [rank]
    with one.open(NAME) as run:
        for step in range(saves_at + 1, 30) if life else range(saves_at + 1):
            present = [one for one in shared if one < size - 1 or step % 2 == 0]
            if not present:
                continue
            run.set_step(step)
            for who in present:
                run.scalar("sum", 2.0**who, reduce="sum")
                run.scalar("whose", float(who), scope="spread") if life == 0 else None
                run.bins("h", torch.ones(1))
            run.scalar("own", 1.0, scope="rank", reduce="sum") if life == 0 else None
        if not life:
            dcp.save({"tracker": one}, checkpoint_id=folder / "checkpoint")
            dist.barrier()
            os._exit(0)
    return []


def keeps_its_number(rank: int, folder: Path) -> dict:
    """The states are taken when the job is over, and the next one goes on with them."""
    one = tracker(folder)
    with one.open(NAME) as run:
        for step in range(13):
            run.set_step(step)
            run.scalar("sum", 2.0**rank, reduce="sum")
    dist.barrier()
    backend = dist.distributed_c10d._get_default_store()
    dist.destroy_process_group()
    state = one.state_dict()
    dist.init_process_group("gloo", store=dist.distributed_c10d.PrefixStore("again", backend), rank=rank, world_size=2)
    other = tracker(folder)
    other._tracker = one._tracker
    other.load_state_dict(state)
    with other.open(NAME) as run:
        for step in range(13, 20):
            run.set_step(step)
            run.scalar("sum", 2.0**rank, reduce="sum")
    return {"ranks": set(state["ranks"]), "size": state["world_size"], "found": content(one, rewritten=True)}


def saves_after_rank_0(rank: int, folder: Path, steps: int) -> dict:
    """Rank 0 saves while its windows wait for rank 1, which saves when they are merged; another life has both."""
    pipeline._OTHERS_SECONDS = 0.0
    one, other, states = tracker(folder, sync_every=4), tracker(folder, sync_every=4), [{}, {}]
    with one.open(NAME) as run:
        for who in range(2):
            for step in range(steps) if rank == who else ():
                run.set_step(step)
                run.scalar("sum", 2.0**rank, reduce="sum")
            while rank == who == 1 and one._pipeline._pending:
                time.sleep(0.01)
            state = one.state_dict() if rank == who else {}
            dist.broadcast_object_list(given := [state], src=who)
            states[who] = given[0]
    other._tracker = one._tracker
    other.load_state_dict({"world_size": 2, "ranks": states[0]["ranks"] | states[1]["ranks"]})
    with other.open(NAME) as run:
        run.set_step(steps)
        run.scalar("sum", 2.0**rank, reduce="sum")
    return {"missing": other.report.missing, **content(other, rewritten=True)}


def spread_in_pieces(rank: int, folder: Path, resumes: bool) -> dict:
    """What is logged for step 1 comes in three pieces, divided by a flush, and perhaps by a state and another life."""
    pieces = {0: (1.0, 9.0, 2.0), 1: (4.0, 4.0, 4.0)}[rank]
    first = second = tracker(folder)
    with first.open(NAME) as run:
        run.set_step(0)
        run.scalar("seconds", 10.0 * rank, scope="spread")
        run.set_step(1)
        run.scalar("seconds", pieces[0], scope="spread")
        run.flush()
        if rank == 0:
            run.scalar("seconds", pieces[1], scope="spread")
            run.scalar("count", 1.0, reduce="sum")
        run.flush()
        if resumes:
            dist.barrier()
            state = first.state_dict()
        else:
            run.scalar("seconds", pieces[2], scope="spread") if rank == 0 else None
            run.set_step(2)
            run.scalar("seconds", 10.0 * rank, scope="spread")
    if resumes:
        second = tracker(folder)
        second._tracker = first._tracker
        second.load_state_dict(state)
        with second.open(NAME) as run:
            run.scalar("seconds", pieces[2], scope="spread") if rank == 0 else None
            run.set_step(2)
            run.scalar("seconds", 10.0 * rank, scope="spread")
    return content(second, rewritten=True)


def comes_back_and_is_saved(rank: int, folder: Path, life: int) -> None:
    """Rank 1 is given up in its second window; when it has come back, all of them save, and are killed."""
    one = jsonl_tracker(folder, sync_every=4, **({} if life else {"distributed_timeout": 1.0}))
    if life:
        distributed.load(one, folder / "checkpoint")
    with one.open(NAME) as run:
        for step in range(14, 20) if life else range(10 if rank else 14):
            run.set_step(step)
            run.scalar("sum", 2.0**rank, reduce="sum")
            if rank == 1 and step == 5 and not life:
                wait_for(folder / "given-up")
        if not life:
            while rank == 0 and one._pipeline.assembly.ranks.written < 11:
                time.sleep(0.01)
            (folder / "given-up").touch() if rank == 0 else None
            dcp.save({"tracker": one}, checkpoint_id=folder / "checkpoint")
            dist.barrier()
            os._exit(0)


def opens_again_after_a_loss(rank: int, folder: Path) -> dict:
    """Rank 1 is away for longer than the others wait, and is there again for the next run."""
    one = tracker(folder, sync_every=2, distributed_timeout=2.0)
    with one.open(NAME) as run:
        for step in range(6):
            run.set_step(step)
            run.scalar("first", 2.0**rank, reduce="sum")
            if (rank, step) == (1, 3):
                wait_for(folder / "closed-0")
                wait_for(folder / "closed-2")
    (folder / f"closed-{rank}").touch()
    dist.barrier()
    with one.open(NAME) as run:
        run.scalar("second", 2.0**rank, reduce="sum")
    return content(one)


def breaking(rank: int, folder: Path) -> dict:
    """A series that is not finite on rank 1 first, on ranks 1 and 2 in one window, and one of rank 2 alone."""
    told, levels = [], set()
    logging.getLogger("d9d_tracker").addFilter(lambda record: levels.add(record.levelname) or True)
    one = tracker(folder, on_nonfinite=told.extend, sync_every=5)
    with one.open(NAME) as run:
        for step in range(20):
            run.set_step(step)
            run.scalar("loss", float("nan") if rank == 1 and step >= 7 else 1.0)
            run.scalar("both", float("inf") if rank >= 1 and step >= 11 else 1.0)
            run.scalar("one after the other", float("nan") if step >= 5 * rank + 3 else 1.0)
            values = torch.ones(10)
            values[:rank] = float("nan") if step == 13 and rank == 2 else 1.0
            run.bins("gradients", values, scope="rank")
    return {"told": told, "report": one.report.nonfinite, "levels": levels}


def rank_0_alone_saves(rank: int, folder: Path, life: int) -> None:
    """Rank 0 logs alone, and has more to save than the other: of what both have, the other's is taken."""
    one = jsonl_tracker(folder, distributed="rank0")
    states = {"tracker": one} | ({"weights": torch.zeros(10_000)} if rank == 0 else {})
    if life:
        dcp.load(states, checkpoint_id=folder / "checkpoint")
    with one.open(NAME) as run:
        for step in range(7, 20) if life else range(7):
            run.set_step(step)
            run.scalar("sum", 1.0, reduce="sum")
        if not life:
            dcp.save(states, checkpoint_id=folder / "checkpoint")
            os._exit(0)


def rank_0_alone(rank: int, folder: Path) -> dict:
    """Rank 0 logs alone, and closes long before the others open."""
    config = {"distributed": "rank0", "distributed_timeout": 1.0}
    one = tracker(folder, **config)
    if rank > 0:
        time.sleep(2)
    with one.open(NAME) as run:
        for step in range(5):
            run.set_step(step)
            run.scalar("loss", float(rank + 1))
            run.bins("values", torch.ones(3))
    return {"content": content(one), "report": one.report.delivered}


def panel_over_lives(rank: int, folder: Path, life: int) -> int:
    """Each life has another number of ranks, of which the slowest step in turn; it saves in a window, and goes on."""
    one, now = jsonl_tracker(folder, sync_every=4), 0.0
    size = one.world_size
    if life:
        distributed.load(one, folder / f"checkpoint{life - 1}")
    with one.open(NAME) as run:
        run.monitor()
        run.clock.seconds = lambda: now
        for step in range(6 * life, 6 * life + 6):
            run.set_step(step)
            run.rate("tokens", 10 * (rank + 1), flops=2.0, peak=10.0)
            with run.time("work"):
                now += 4.0 if step % size == rank else 1.0
        dcp.save({"tracker": one}, checkpoint_id=folder / f"checkpoint{life}")
    return size
