"""(c) Histograms alone, from a million elements on."""

from collections.abc import Callable

import numpy as np
import torch

from d9d_tracker import LinearBinning

from .contenders import Ours, configure
from .interleave import Spread, Subject, interleave
from .plan import Plan
from .report import Result, Row, losses

_MILLION = 2**20
_RANGE = 6.0
_MOST_FOR_NUMPY = 16 * _MILLION


def run(plan: Plan) -> Result:
    """Measure histograms of normally distributed values."""
    columns = {"ms": ",.2f", "GB/s read": ",.1f", "reads": ".1f"}
    result = Result("c", "One histogram of 1M to 64M elements", columns, series={"plot": "histograms"})
    sizes = (2**10, 2**12) if plan.quick else tuple(_MILLION * factor for factor in (1, 4, 16, 64))
    dtypes = (torch.float32,) if plan.device == "cpu" else (torch.float32, torch.bfloat16)
    tracker = Ours(configure("null", plan.folder / "histograms", plan.device))
    try:
        for dtype in dtypes:
            for size in sizes:
                _measure(plan, tracker, torch.randn(size, device=plan.device).to(dtype), result)
    finally:
        tracker.close()
    result.remarks = [
        "reads: time as a multiple of reading the tensor once, at the bandwidth of a copy of it (read plus written) "
        "in the same rounds. GB/s read counts the tensor's bytes once, whatever a method really reads.",
        "The smaller tensors lie in a cache.",
        "numpy.histogram takes seconds beyond 16M elements and is left out there.",
        "d9d_tracker's histogram includes exact count, sum, sum of squares, min, max, zeros, NaN and infinities.",
    ]
    result.remarks += losses(
        result.rows,
        "ms",
        "d9d_tracker, exponential",
        "They keep less: 64 bins, no moments, no zeros, no non-finite counts.",
    )
    if plan.device == "cuda":
        result.remarks.append("torch.histc refuses half precision: its bfloat16 figures include .float().")
    else:
        result.remarks.append("Small tensors fit into the CPU's cache: there one read is cheaper than memory allows.")
    return result


def _measure(plan: Plan, tracker: Ours, values: torch.Tensor, result: Result) -> None:
    copied = torch.empty_like(values)
    methods = {"copy": lambda: copied.copy_(values), **_methods(plan, tracker, values)}
    timings = interleave(
        {name: Subject(_repeat(method), 20) for name, method in methods.items()},
        rounds=3,
        round_seconds=0.02 if plan.quick else 0.2,
        device=plan.device,
    )
    size = f"{values.numel() // _MILLION}M" if values.numel() >= _MILLION else str(values.numel())
    group = f"{size} {str(values.dtype).removeprefix('torch.')}"
    gigabytes = values.nbytes / 1e9
    for name in methods:
        if name == "copy":
            continue
        loop = timings[name].loop
        milliseconds = Spread.of([sample * 1e3 for sample in loop])
        rate = Spread.of([gigabytes / sample for sample in loop])
        against = timings[name].ratio(timings["copy"]).scaled(2)
        kind = "ours" if name.startswith("d9d_tracker") else "package"
        cells = {"ms": milliseconds, "GB/s read": rate, "reads": against}
        result.rows.append(Row(name, kind, dict(cells), _NOTES.get(name, ""), group))


def _methods(plan: Plan, tracker: Ours, values: torch.Tensor) -> dict[str, Callable[[], object]]:
    def histc_of_unknown_range() -> torch.Tensor:
        floats = values.float()
        low, high = floats.aminmax()
        return torch.histc(floats, 64, low.item(), high.item())

    linear = LinearBinning(low=-_RANGE, high=_RANGE, bins=64)
    methods: dict[str, Callable[[], object]] = {
        "d9d_tracker, exponential": lambda: tracker.run.bins("exponential", values),
        "d9d_tracker, 64 linear bins": lambda: tracker.run.bins("linear", values, binning=linear),
        "torch.histc, range known": lambda: torch.histc(values.float(), 64, -_RANGE, _RANGE),
        "torch.histc after aminmax": histc_of_unknown_range,
    }
    if values.numel() <= _MOST_FOR_NUMPY:
        methods["numpy.histogram"] = lambda: np.histogram(values.float().cpu().numpy(), 64)
    return methods


def _repeat(method: Callable[[], object]) -> Callable[[int], None]:
    def repeat(times: int) -> None:
        for _ in range(times):
            method()

    return repeat


_NOTES = {
    "d9d_tracker, exponential": "2048 bins, no range to know, all statistics",
    "d9d_tracker, 64 linear bins": "all statistics",
    "torch.histc, range known": "counts in float; values outside and NaN are lost",
    "torch.histc after aminmax": "what wandb.watch does: waits for the device twice",
    "numpy.histogram": "what TensorBoard does, after a copy to the host",
}
