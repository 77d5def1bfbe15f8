"""The histogram kernels on a GPU: how close to the speed of memory, and against what does less.

    PYTHONPATH=.:kernels python -m bench.histogram_gpu [--out bench/results]

A histogram reads its input once, so the floor is bytes / bandwidth. The bandwidth is measured in the same run by a
device-to-device copy, whose bytes count twice (read and written). The L2 cache is flushed before each measurement.
"""

import argparse
import importlib.util
import json
import re
import statistics
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch

from d9d_tracker_kernels.bank import allocate
from d9d_tracker_kernels.binning import EXPONENTIAL
from d9d_tracker_kernels.ops import histogram_, histogram_many_

from .roofline import Point, draw_roofline

DEVICE = "cuda"
CACHE_WORDS = 64 << 20  # more than any L2 cache has
SIZES = {"1M": 1 << 20, "64M": 1 << 26, "1G": 1 << 30}
BINNING = (EXPONENTIAL, 2048, 0.0, 0.0)
# GPT-2-small: embeddings, then 12 layers of attention, feed-forward and norms. 148 tensors; twice that is 296.
GPT2_SHAPES = [(50257, 768), (1024, 768), (768,), (768,)]
GPT2_SHAPES += 12 * [(768,)] * 4 + 12 * [(768, 2304), (2304,), (768, 768), (768,)]
GPT2_SHAPES += 12 * [(768, 3072), (3072,), (3072, 768), (768,)]


def milliseconds(function: Callable[[], object], rounds: int = 20) -> float:
    """Median time on the GPU, by events. What a launch costs the host is hidden, below some 10 ms."""
    flush = torch.zeros(CACHE_WORDS, dtype=torch.int32, device="cuda")
    times = []
    for turn in range(rounds + 3):
        flush.sum()  # reading, because written lines would be put back during the measurement
        torch.cuda._sleep(20_000_000)  # some 10 ms, in which the host gets ahead
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        if turn >= 3:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def make(distribution: str, size: int, dtype: torch.dtype) -> torch.Tensor:
    values = torch.zeros(size, dtype=dtype, device=DEVICE)
    if distribution == "normal":
        values.normal_()
    elif distribution == "uniform":
        values.uniform_(-4, 4)
    elif distribution == "all equal":
        values.fill_(0.7)
    return values


def rivals(values: torch.Tensor) -> dict[str, Callable[[], object]]:
    functions: dict[str, Callable[[], object]] = {"x.sum()": values.sum}
    if values.dtype == torch.float32:
        functions["torch.histc, range known"] = lambda: torch.histc(values, 512, -4, 4)
        if values.numel() <= 1 << 26:
            functions["torch.histogram on the CPU"] = lambda: torch.histogram(values.cpu(), 512, range=(-4.0, 4.0))
    try:
        import cupy  # pyright: ignore[reportMissingImports] (optional: measured where it is installed)
    except ImportError:
        print("     cupy is not installed: its histogram (CUB) is not measured")
    else:
        if values.dtype == torch.float32:
            array = cupy.from_dlpack(values)
            functions["cupy.histogram, range known"] = lambda: cupy.histogram(array, 512, range=(-4.0, 4.0))
    try:
        import cuda.compute  # pyright: ignore[reportMissingImports] (optional: measured where it is installed)
    except ImportError:
        print("     cuda-cccl is not installed: CUB's histogram by cuda.compute is not measured")
    else:
        if values.dtype == torch.float32:
            counts = torch.zeros(512, dtype=torch.int32, device=values.device)
            functions["cuda.compute histogram_even, range known"] = lambda: cuda.compute.histogram_even(
                d_samples=values,
                d_histogram=counts,
                num_output_levels=513,
                lower_level=np.float32(-4),
                upper_level=np.float32(4),
                num_samples=values.numel(),
            )
    return functions


def one_tensor(points: list[Point]) -> float:
    """Prints the single-tensor table, collects points and returns the copy bandwidth in bytes per ms."""
    state, step = allocate(1, DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    bandwidth = 0.0
    for dtype in (torch.float32, torch.bfloat16):
        for size_name, size in SIZES.items():
            values = make("normal", size, dtype)
            target = torch.empty_like(values)
            copied = 2 * values.nbytes / milliseconds(lambda values=values, target=target: target.copy_(values))
            bandwidth = max(bandwidth, copied)
            print(f"{size_name} {dtype}: copy {copied / 1e9:.2f} TB/s")
            del target
            for name, function in rivals(values).items():
                report(name, values.nbytes, milliseconds(function), copied)
            for distribution in ("normal", "uniform", "all equal", "zeros"):
                values = make(distribution, size, dtype)
                args = (values, state.counts, state.moments, state.partials, state.places, step, 0, 1, *BINNING)
                time = milliseconds(lambda args=args: histogram_(*args))
                report(f"histogram, {distribution}", values.nbytes, time, copied)
                points.append(Point(f"{dtype} {distribution}", values.nbytes, time))
    return bandwidth


def report(name: str, nbytes: float, time: float, bandwidth: float) -> None:
    rate = nbytes / time
    print(f"     {name:28} {time:9.4f} ms {rate / 1e9:6.2f} TB/s {rate / bandwidth:6.0%} of the copy bandwidth")


def many_tensors() -> None:
    gradients = [torch.randn(shape, device=DEVICE) * 1e-3 for shape in 2 * GPT2_SHAPES]
    state, step = allocate(len(gradients), DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    args = (
        gradients,
        state.counts,
        state.moments,
        state.partials,
        state.places,
        step,
        list(range(len(gradients))),
        1,
        *BINNING,
    )
    nbytes = sum(gradient.nbytes for gradient in gradients)
    print(f"{len(gradients)} gradients, {nbytes / 1e6:.0f} MB")
    for name, function in {
        "histogram_many_": lambda: histogram_many_(*args),
        "torch._foreach_norm": lambda: torch.ops.aten._foreach_norm.Scalar(gradients),
        "loop of torch.histc": lambda: [torch.histc(gradient, 512, -4, 4) for gradient in gradients],
    }.items():
        time = milliseconds(function)
        print(f"     {name:28} {time:9.4f} ms {nbytes / time / 1e9:6.2f} TB/s")


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the picture")
    arguments = parser.parse_args(given)
    if not torch.cuda.is_available():
        print("not measured: this machine has no CUDA device")
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    points: list[Point] = []
    bandwidth = one_tensor(points)
    many_tensors()
    device = torch.cuda.get_device_name()
    title = f"Histograms of 2048 bins with all statistics\n{device} · torch {torch.__version__} · {date.today()}"
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    out = arguments.out / f"{date.today()}-roofline-{slug}.png"
    results = {"device": device, "torch": torch.__version__, "date": str(date.today()), "bandwidth": bandwidth}
    results["points"] = [point._asdict() for point in points]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    if importlib.util.find_spec("matplotlib") is None:
        print("matplotlib is not installed: no picture")
        return
    draw_roofline(points, bandwidth, "the bandwidth of a copy: the limit", title, out)


if __name__ == "__main__":
    main()
