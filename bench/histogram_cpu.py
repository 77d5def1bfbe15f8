"""The CPU path of the histograms against `torch.histc` with its range known.

    PYTHONPATH=.:kernels python -m bench.histogram_cpu [--out bench/results] [--rounds 15]

Rounds are interleaved: each times every candidate once, so that a slow moment of the machine hits all of them alike.
The histogram counts 2048 exponential bins and all statistics; `torch.histc` counts 512 bins and nothing else.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

from d9d_tracker_kernels.bank import allocate
from d9d_tracker_kernels.binning import EXPONENTIAL, INTEGER, LINEAR
from d9d_tracker_kernels.ops import histogram_

from .roofline import Point, draw_roofline

SIZES = {"1M": 1 << 20, "4M": 1 << 22, "16M": 1 << 24, "64M": 1 << 26}
READ = "x.sum()"
BINNINGS = {
    "exponential 2048": (EXPONENTIAL, 2048, 0.0, 0.0),
    "linear 64": (LINEAR, 64, -5.0, 5.0),
    "integer 512": (INTEGER, 512, 0.0, 0.0),
}


def candidates(values: torch.Tensor) -> dict[str, Callable[[], object]]:
    state, step = allocate(1, "cpu"), torch.zeros(1, dtype=torch.int64)
    args = (values, state.counts, state.moments, state.partials, state.places, step, 0, 1)
    functions: dict[str, Callable[[], object]] = {"torch.histc": lambda: torch.histc(values, 512, -5, 5)}
    for name, binning in BINNINGS.items():
        functions[name] = lambda binning=binning: histogram_(*args, *binning)
    functions[READ] = values.sum
    return functions


def interleaved_medians(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each candidate."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn:  # the first is a warm-up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the picture")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32 normal values")
    print(f"{'elements':>8}  {'candidate':18} {'ms':>9} {'GB/s':>7} {'times as fast as histc':>23}")
    points: list[Point] = []
    bandwidth = 0.0
    for size_name, size in SIZES.items():
        values = torch.randn(size, generator=torch.Generator().manual_seed(0))
        # More for small tensors, so that each size takes seconds: a hiccup of the machine takes tenths.
        medians = interleaved_medians(candidates(values), arguments.rounds * max(1, SIZES["16M"] // size))
        for name, seconds in medians.items():
            rate = values.nbytes / seconds / 1e9
            print(
                f"{size_name:>8}  {name:18} {seconds * 1e3:9.3f} {rate:7.2f} {medians['torch.histc'] / seconds:23.2f}"
            )
            if name != READ:
                points.append(Point(name, values.nbytes, seconds * 1e3, is_ours=name in BINNINGS))
        bandwidth = values.nbytes / (medians[READ] * 1e3)  # of the largest, which no cache holds
    title = f"Histograms on a CPU\n{torch.get_num_threads()} threads · torch {torch.__version__} · {date.today()}"
    out = arguments.out / f"{date.today()}-roofline-cpu.png"
    draw_roofline(points, bandwidth, f"one read ({READ}): the limit", title, out)


if __name__ == "__main__":
    main()
