"""What merging ranks costs: collectives, bytes and time per window, counted at 1 to 8 processes, modelled to 4,096.

    python -m bench.ranks [--out bench/results]
    python -m bench.ranks --counts    without times and files

The counts are those of real jobs: processes on this host that train for a few windows and merge them over loopback,
off the training thread. The times of the counted jobs are loopback's on two cores and say little about a network; the
model says what they would be on one. Its assumptions:

- Gloo's rings: an all_gather takes n - 1 turns, an all_reduce 2 (n - 1), a reduce 2 (n - 1); in each turn every rank
  sends an n-th of the payload (an all_gather: its own part) to its neighbour. A broadcast is a tree.
- A turn takes a latency of 30 microseconds, and bytes travel at 3 GB/s: a busy 25 GbE.
- Ranks agree: they log the same series, in windows of the same steps, so that no tables are exchanged.

Beside the collectives, every rank but the first looks at the job's store now and then, and rank 0 does while it waits
for others: these operations are counted.
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from d9d_tracker import AccumulatingTracker, AccumulatorConfig, RunConfig
from d9d_tracker.ranks.board import Board, period
from d9d_tracker.ranks.group import Group
from d9d_tracker.ranks.lead import Lead
from d9d_tracker.ranks.member import Member
from d9d_tracker.ranks.pulse import Pulse
from d9d_tracker.testing import RecordingTracker

_HERE = Path(__file__).parent
_SIZES = (1, 2, 4, 8)
_MODELLED = tuple(2**power for power in range(1, 13))
_LATENCY, _BANDWIDTH = 30e-6, 3e9
_WINDOWS = 5
_TURNS = {"all_gather": 1, "all_reduce_max": 2, "reduce_sum": 2}


@dataclass(frozen=True)
class Load:
    """What every rank logs."""

    scalars: int
    histograms: int
    steps: int

    def __str__(self) -> str:
        return f"{self.scalars} scalars, {self.histograms} histograms, N={self.steps}"

    def payloads(self) -> list[tuple[str, int]]:
        """Return the collectives of a window, and the bytes that a rank brings to each."""
        rows = self.steps * self.scalars
        maxima = 8 * (3 * rows + 3 * self.histograms)  # two extremes and whose is the last; two extremes, last step
        sums = 8 * (4 * rows + 2 * self.histograms)
        counts = 8 * 2056 * self.histograms
        calls = [("all_gather", 40), ("all_reduce_max", maxima), ("reduce_sum", sums), ("reduce_sum", counts)]
        return [*calls, ("broadcast", 8)]


LOADS = (Load(10, 0, 50), Load(100, 0, 50), Load(100, 300, 50), Load(100, 300, 10))


def model(load: Load, size: int) -> float:
    """Return the seconds that a window's collectives take."""
    seconds = 0.0
    for name, payload in load.payloads():
        if name == "broadcast":
            seconds += math.ceil(math.log2(size)) * _LATENCY
            continue
        part = payload if name == "all_gather" else payload / size
        seconds += _TURNS[name] * (size - 1) * (_LATENCY + part / _BANDWIDTH)
    return seconds


def measure(load: Load, size: int, lazy: bool) -> dict[str, Any]:
    """Run a job; return its collectives, the bytes a rank brought to them, and medians of seconds."""
    start = multiprocessing.get_context("forkserver")
    start.set_forkserver_preload(["d9d_tracker.testing"])
    with tempfile.TemporaryDirectory(prefix="d9d_tracker-ranks-") as folder:
        results = start.SimpleQueue()
        processes = [
            start.Process(target=_rank, args=(load, rank, size, lazy, Path(folder), results)) for rank in range(size)
        ]
        try:
            for process in processes:
                process.start()
            return min((results.get() for _ in processes), key=lambda found: found["rank"])
        finally:
            for process in processes:
                process.join(60)
                process.kill()


def _rank(load: Load, rank: int, size: int, lazy: bool, folder: Path, results: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"TORCH_GLOO_LAZY_INIT": "1"} if lazy else {}
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=size)
    calls: list[tuple[str, int]] = []
    for name in (*_TURNS, "gather", "broadcast"):
        _note(name, calls)
    merged: list[tuple[str, int]] = []  # the calls of the last window that is through
    seconds: list[float] = []
    kind = Lead if rank == 0 else Member
    reduce = kind.reduce

    def timed(self: Any, *arguments: Any, **options: Any) -> Any:
        calls.clear()
        began = time.perf_counter()
        try:
            return reduce(self, *arguments, **options)
        finally:
            seconds.append(time.perf_counter() - began)
            merged[:] = calls

    kind.reduce = timed
    config = AccumulatorConfig(
        device="cpu",
        sync_every=load.steps,
        max_scalars=load.scalars,
        max_histograms=max(1, load.histograms),
        backlog_dir=folder / "backlog",
    )
    tracker = AccumulatingTracker(RecordingTracker(), config)
    began = time.perf_counter()
    found: list[tuple[str, int]] = []
    with tracker.open(RunConfig(name="ranks")) as run:
        opened = time.perf_counter() - began
        for step in range(_WINDOWS * load.steps):
            run.set_step(step)
            run.scalars({f"series {number}": 1.0 for number in range(load.scalars)})
            for number in range(load.histograms if step % load.steps == 0 else 0):
                run.bins(f"histogram {number}", torch.ones(1))
        run.set_step(_WINDOWS * load.steps)
        while not seconds and size > 1:
            time.sleep(0.01)
        tracker.state_dict()  # waits for the other windows
        found = list(merged)
    results.put(
        {"rank": rank, "open": opened, "calls": found, "window": statistics.median(seconds[1:]) if seconds else 0.0}
    )
    if size > 1:
        dist.destroy_process_group()


def _note(name: str, calls: list[tuple[str, int]]) -> None:
    collective = getattr(Group, name)

    def noted(self: Group, tensor: torch.Tensor) -> Any:
        calls.append((name, tensor.nbytes))
        return collective(self, tensor)

    setattr(Group, name, noted)


def store_operations(size: int) -> tuple[float, float]:
    """Return how many operations of the store a job makes a second: while it trains, and while rank 0 waits for others.

    One member is counted, and multiplied; rank 0 is counted with all of them.
    """
    operations = 0

    class Counted(Board):
        def get(self, key: str) -> Any:
            nonlocal operations
            value = super().get(key)
            operations += 1 if value is None else 2
            return value

        def put(self, key: str, value: Any) -> None:
            nonlocal operations
            operations += 1
            super().put(key, value)

    def count(action: Callable[[], object]) -> int:
        before = operations
        action()
        return operations - before

    board = Counted(dist.HashStore(), "ranks")  # pyright: ignore[reportPrivateImportUsage] as documented
    lead = Lead(board, 0, size, timeout=1e9)
    pulse = Pulse(board, 1, period=1e9)
    for rank in range(2, size):
        board.put(f"answer/{rank}", {"ask": 0, "generation": 0, "waits": False, "left": False, "back": -1})
    pulse.say()
    quiet = count(pulse.beat)
    asks = count(lead._look)  # pyright: ignore[reportPrivateUsage] what it asks the store is counted
    answers = count(pulse.beat)
    pulse.close()
    others, seconds = size - 1, period(size)
    return others * quiet / seconds, (others * answers + asks) / seconds


def _print_counts() -> None:
    for load in LOADS:
        for size in _SIZES[1:]:
            calls = measure(load, size, False)["calls"]
            equal = "as modelled" if calls == load.payloads() else f"DIFFERS from {load.payloads()}"
            words = f"{len(calls)} collectives, {sum(nbytes for _, nbytes in calls):,} bytes a rank"
            print(f"{load}, {size} ranks: {words}, {equal}")
    for size in (8, 512, 4096):
        quiet, waiting = store_operations(size)
        print(f"{size:,} ranks: {quiet:,.0f} operations of the store a second, {waiting:,.0f} while rank 0 waits")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.ranks", description="Count and model the cost of merging ranks."
    )
    parser.add_argument("--out", type=Path, default=_HERE / "results", help="folder of the results")
    parser.add_argument("--counts", action="store_true", help="count alone, which other programs do not disturb")
    chosen = parser.parse_args()
    if chosen.counts:
        _print_counts()
        return
    chosen.out.mkdir(parents=True, exist_ok=True)
    table = Table(
        "load", "ranks", "collectives", "bytes a rank", "as modelled", "ms a window", "ms open", "ms open, lazy"
    )
    rows = []
    for load in LOADS:
        for size in _SIZES:
            found, lazy = measure(load, size, False), measure(load, size, True)
            expected = load.payloads() if size > 1 else []
            rows.append({"load": asdict(load), "ranks": size, **found, "open_lazy": lazy["open"]})
            table.add_row(
                str(load), str(size), str(len(found["calls"])), f"{sum(nbytes for _, nbytes in found['calls']):,}",
                "equal" if found["calls"] == expected else f"DIFFERS: {expected}", f"{1e3 * found['window']:.1f}",
                f"{1e3 * found['open']:.0f}", f"{1e3 * lazy['open']:.0f}",
            )  # fmt: skip
        for size in (64, 512, 4096):
            table.add_row(str(load), f"{size:,}", "", "", "", f"{1e3 * model(load, size):.0f} (modelled)", "", "")
    Console(width=170).print(table)
    _print_counts()
    name = f"{date.today()}-ranks"
    (chosen.out / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
    figure, axes = plt.subplots(figsize=(7, 4.4), constrained_layout=True)
    for load, colour in zip(LOADS, ("#1971c2", "#2f9e44", "#e8590c", "#9c36b5"), strict=True):
        axes.plot(_MODELLED, [1e3 * model(load, size) for size in _MODELLED], color=colour, label=str(load))
    axes.set(title="A window's merging, off the training thread (modelled)", xlabel="ranks", ylabel="ms")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(chosen.out / f"{name}.png", dpi=150)


if __name__ == "__main__":
    main()
