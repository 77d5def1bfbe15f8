"""What merging ranks costs: messages and bytes per window, counted at 1 to 8 processes and modelled to 4,096 ranks.

    python -m bench.ranks [--out bench/results]

The counts are those of real jobs: processes on this host that train for a few windows and merge them over loopback. The
model is arithmetic; the table shows both where both exist, and they must agree to the byte. Its assumptions:

- Ranks agree: they log the same series, in windows of the same steps. Each rank but the writer then sends one message
  per window to its parent in a binomial tree, so that a rank receives at most log2(ranks) of them, the writer included.
- A message holds 48 bytes per scalar series and step (6 lanes of float64), 16,480 bytes per histogram series (2,056
  counts of int64 and 4 moments of float64), and a head with the index, the steps and the table of series when it
  changed. The head is that of windows whose steps have as many digits as those that were counted.
- Series of ``scope="rank"`` are another series on every rank: what arrives at the writer then grows with the ranks, as
  what is asked for does.
- TCP and IP add their headers; they are not counted.
- Not modelled: time. A message is merged by numpy in the thread that waits for it, at memory speed, and the levels of
  the tree come one after the other: log2(ranks) messages lie on the longest way.
"""

import argparse
import json
import math
import multiprocessing
import tempfile
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from d9d_tracker import AccumulatingTracker, AccumulatorConfig, RunConfig
from d9d_tracker.accumulator.distributed import tree
from d9d_tracker.testing import RecordingTracker

_HERE = Path(__file__).parent
_FRAME = 16  # length of the message, length of its head
_LANES = 6 * 8
_HISTOGRAM = (8 + 2048) * 8 + 4 * 8
_WINDOWS = 3
_FIRST_STEP = 1000
_MEASURED = (1, 2, 4, 8)
_MODELLED = tuple(2**power for power in range(13))


@dataclass(frozen=True)
class Load:
    """What every rank logs.

    Attributes:
        scalars: Number of scalar series.
        histograms: Number of histogram series.
        steps: Number of steps in a window, N.
        of_each_rank: Number of scalar series of ``scope="rank"``.
    """

    scalars: int
    histograms: int
    steps: int
    of_each_rank: int = 0

    def __str__(self) -> str:
        own = f" + {self.of_each_rank} per rank" if self.of_each_rank else ""
        return f"{self.scalars}{own} scalars, {self.histograms} histograms, N={self.steps}"


LOADS = (Load(10, 0, 50), Load(100, 0, 50), Load(100, 50, 50), Load(100, 50, 10), Load(10, 0, 50, of_each_rank=4))


@dataclass(frozen=True)
class Cost:
    """What one window costs once the series are known.

    Attributes:
        messages: Messages in the whole job.
        received: Messages that the writer receives.
        received_bytes: Bytes that the writer receives.
        most_sent_bytes: Bytes of the largest message.
    """

    messages: int
    received: int
    received_bytes: int
    most_sent_bytes: int


def model(load: Load, size: int) -> Cost:
    """Return what a window costs by the layout of a message and the shape of the tree."""
    last = _FIRST_STEP + _WINDOWS * load.steps - 1
    head = {
        "index": _WINDOWS - 1,
        "steps": list(range(last - load.steps + 1, last + 1)),
        "through": [last, True],
    }
    length = len(json.dumps(head, separators=(",", ":")))
    length += -length % 8

    def message(rank: int) -> int:
        scalars = load.scalars + load.of_each_rank * len(tree.subtree(rank, size))
        return _FRAME + length + _LANES * load.steps * scalars + _HISTOGRAM * load.histograms

    below = [message(child) for child in tree.children(0, size)]
    return Cost(size - 1, len(below), sum(below), max(map(message, range(1, size)), default=0))


def measure(load: Load, size: int) -> Cost:
    """Run a job and count the traffic of its last window."""
    start = multiprocessing.get_context("forkserver")
    start.set_forkserver_preload(["d9d_tracker.testing"])
    with tempfile.TemporaryDirectory(prefix="d9d_tracker-ranks-") as folder:
        results = start.SimpleQueue()
        processes = [
            start.Process(target=_rank, args=(load, rank, size, Path(folder), results)) for rank in range(size)
        ]
        try:
            for process in processes:
                process.start()
            counted = [results.get() for _ in processes]
        finally:
            for process in processes:
                process.join(60)
                process.kill()
    by_rank = [traffic for _, traffic in sorted(counted)]
    sent = [traffic[3] for traffic in by_rank]
    return Cost(sum(traffic[2] for traffic in by_rank), by_rank[0][0], by_rank[0][1], max(sent))


def _rank(load: Load, rank: int, size: int, folder: Path, results) -> None:
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=size)
    config = AccumulatorConfig(
        device="cpu",
        sync_every=load.steps,
        max_scalars=load.scalars + load.of_each_rank,
        max_histograms=max(1, load.histograms),
        backlog_dir=folder / "backlog",
    )
    tracker = AccumulatingTracker(RecordingTracker(), config)
    before = after = (0, 0, 0, 0)
    with tracker.open(RunConfig(name="ranks")) as run:
        run.set_step(_FIRST_STEP - 1)  # ends in a window of its own
        run.flush()
        for step in range(_FIRST_STEP, _FIRST_STEP + _WINDOWS * load.steps):
            run.set_step(step)
            if step == _FIRST_STEP + (_WINDOWS - 1) * load.steps:
                before = _settled(tracker)
            for number in range(load.scalars):
                run.scalar(f"series {number}", 1.0)
            for number in range(load.of_each_rank):
                run.scalar(f"own {number}", 1.0, scope="rank")
            for number in range(load.histograms):
                run.bins(f"histogram {number}", torch.ones(1))
        run.set_step(_FIRST_STEP + _WINDOWS * load.steps)
        after = _settled(tracker)
    results.put((rank, tuple(late - early for late, early in zip(after, before, strict=True))))
    if size > 1:
        dist.destroy_process_group()


def _settled(tracker: AccumulatingTracker) -> tuple[int, int, int, int]:
    tracker.state_dict()  # waits until the closed windows are merged here
    if not dist.is_initialized():
        return 0, 0, 0, 0
    dist.barrier()  # a message that rank 0 has merged was sent
    tracker.state_dict()
    assert tracker._collector is not None
    assert tracker._collector._node is not None
    return tracker._collector._node.traffic


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.ranks", description="Count and model the cost of merging ranks."
    )
    parser.add_argument("--out", type=Path, default=_HERE / "results", help="folder of the results")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    rows = [(load, size, model(load, size)) for load in LOADS for size in _MODELLED]
    measured = {(load, size): measure(load, size) for load in LOADS for size in _MEASURED}
    table = Table("load", "ranks", "messages", "to the writer", "bytes to the writer", "largest message", "counted")
    for load, size, cost in rows:
        if size in (*_MEASURED, 64, 512, 4096):
            counted = measured.get((load, size))
            words = "" if counted is None else "equal" if counted == cost else f"DIFFERS: {counted}"
            table.add_row(
                str(load), f"{size:,}", f"{cost.messages:,}", str(cost.received), f"{cost.received_bytes:,}",
                f"{cost.most_sent_bytes:,}", words,
            )  # fmt: skip
    Console(width=160).print(table)
    found = [
        {"load": asdict(load), "ranks": size, "modelled": asdict(cost)}
        | ({"counted": asdict(measured[load, size])} if (load, size) in measured else {})
        for load, size, cost in rows
    ]
    (chosen.out / f"{date.today()}-ranks.json").write_text(json.dumps(found, indent=1) + "\n")
    _draw(rows, measured, chosen.out / f"{date.today()}-ranks.png")


def _draw(rows: list[tuple[Load, int, Cost]], measured: dict[tuple[Load, int], Cost], path: Path) -> None:
    figure, (messages, volume) = plt.subplots(1, 2, figsize=(12, 4.6), constrained_layout=True)
    sizes = list(_MODELLED)
    messages.plot(sizes, [model(LOADS[0], size).received for size in sizes], color="#e8590c", label="binomial tree")
    messages.plot(
        sizes,
        [4 * (size - 1) for size in sizes],
        color="#7b8794",
        linestyle=":",
        label="two ring all-reduces (2(n - 1) each)",
    )
    counted = [measured[LOADS[0], size].received for size in _MEASURED]
    messages.plot(_MEASURED, counted, "o", color="#e8590c", label="counted")
    messages.set(title="Messages to the writer per window", xlabel="ranks", xscale="log", ylim=(0, 40))
    for load, colour in zip(LOADS, ("#1971c2", "#2f9e44", "#e8590c", "#9c36b5", "#7b8794"), strict=True):
        points = [(size, cost.received_bytes) for one, size, cost in rows if one == load and size > 1]
        volume.plot(*zip(*points, strict=True), color=colour, label=str(load))
        dots = [(size, measured[load, size].received_bytes) for size in _MEASURED if size > 1]
        volume.plot(*zip(*dots, strict=True), "o", color=colour)
    volume.set(title="Bytes to the writer per window (dots: counted)", xlabel="ranks", xscale="log", yscale="log")
    for axes in (messages, volume):
        axes.set_xscale("log", base=2)
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    assert all(cost.received == math.ceil(math.log2(size)) for _, size, cost in rows)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
