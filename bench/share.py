"""(g) What the threads behind the loop take of the interpreter: their processor time per window."""

import statistics
import threading
from pathlib import Path
from typing import Literal

import torch

from .contenders import EVERY, Ours, configure
from .plan import Plan
from .report import Result, Row

_WINDOWS = 20
_BACKENDS: list[tuple[str, Literal["thread", "process"]]] = [
    ("null", "thread"),
    ("jsonl", "thread"),
    ("jsonl", "process"),
]
_SCHEDSTAT = "/proc/self/task/{}/schedstat"


def run(plan: Plan) -> Result:
    """Measure the processor time of the collector and the delivery for windows of scalars."""
    result = Result(
        "g",
        f"Processor time of the threads behind the loop, for a window of {EVERY} steps",
        {"collector ms a window": ".2f", "delivery ms a window": ".2f"},
    )
    if not Path("/proc/self/schedstat").exists():
        result.missing["d9d_tracker"] = "the system does not count the processor time of a thread"
        return result
    windows = 2 if plan.quick else _WINDOWS
    for scalars in (1, 10) if plan.quick else (1, 10, 100):
        values = {f"value/{index}": torch.tensor(float(index), device=plan.device) for index in range(scalars)}
        for backend, writer in _BACKENDS:
            place = plan.folder / f"share-{scalars}-{backend}-{writer}"
            name = f"d9d_tracker → {backend}{', in a process' * (writer == 'process')}"
            ours = Ours(configure(backend, place, plan.device, writer=writer), name)
            try:
                times = _measure(ours, values, windows)
            finally:
                ours.close()
            cells = {f"{thread} ms a window": milliseconds for thread, milliseconds in times.items()}
            result.rows.append(Row(name, "ours", dict(cells), group=f"{scalars} scalar{'s' * (scalars > 1)}"))
    result.remarks = [
        f"Medians of {windows} windows, by the system's own count. An upper bound of how long they hold the "
        "interpreter: NumPy and the disk let go of it for a part of that."
    ]
    return result


def _measure(ours: Ours, values: dict[str, torch.Tensor], windows: int) -> dict[str, float]:
    samples: dict[str, list[float]] = {"collector": [], "delivery": []}
    step = 0
    for _ in range(windows + 2):
        before = _processor_milliseconds()
        for _ in range(EVERY):
            ours.set_step(step)
            ours.scalars(values)
            step += 1
        ours.settle()
        after = _processor_milliseconds()
        for thread, sample in samples.items():
            sample.append(after[thread] - before[thread])
    return {thread: statistics.median(sample[2:]) for thread, sample in samples.items()}


def _processor_milliseconds() -> dict[str, float]:
    found = {"collector": 0.0, "delivery": 0.0}
    for thread in threading.enumerate():
        kind = thread.name.removeprefix("d9d_tracker ").split(" ")[0]
        if thread.name.startswith("d9d_tracker ") and kind in found:
            found[kind] += int(Path(_SCHEDSTAT.format(thread.native_id)).read_text().split()[0]) / 1e6
    return found
