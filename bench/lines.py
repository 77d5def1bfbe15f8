"""What `set_step` touches between two steps of training: instructions, and lines of the cache.

    PYTHONPATH=.:kernels python -m bench.lines [--series 0,1,10,100]

The model has pushed everything out of the caches by then, so that each line is fetched from far, once: their number
says more of the time that a call takes than that of its instructions. Valgrind's caches are empty when it begins to
look, and large enough here to keep what they have seen. It needs Valgrind and a C compiler, and a minute.
"""

import argparse
import ctypes
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from d9d_tracker import AccumulatorConfig, NullTrackerConfig, RunConfig, tracker_from_config

from .valgrind import ENVIRONMENT, prepare, under_valgrind

_STEPS = 200
_CALLS = 21
_CACHE = "67108864,16,64"  # bytes, ways, bytes of a line


def call(series: int, folder: Path) -> None:
    """Under Valgrind, count calls of `set_step` one by one; each second time, nothing at all."""
    switch = ctypes.CDLL(str(folder / "switch.so"))
    accumulator = AccumulatorConfig(sync_every=10 * _STEPS, device="cpu")
    values = {f"series {index}": 1.0 for index in range(series)}
    with tracker_from_config(NullTrackerConfig(accumulator=accumulator)).open(RunConfig(name="lines")) as run:
        for step in range(_STEPS + 2 * _CALLS):
            if step < _STEPS:
                run.set_step(step)
            elif step % 2:
                switch.begin()
                run.set_step(step)
                switch.end()
            else:
                run.set_step(step)
                switch.begin()
                switch.end()
            run.scalars(values)


def touched(outputs: Iterable[str]) -> tuple[int, int]:
    """Return the instructions of a call, and the lines of code and data that it touches.

    Args:
        outputs: What Valgrind has written of each count, in order: of nothing and of the call in turns.
    """
    counts = []
    for text in outputs:
        events, totals = (re.search(rf"^{name}: (.+)$", text, re.MULTILINE) for name in ("events", "totals"))
        if events and totals:
            found = dict(zip(events[1].split(), map(int, totals[1].split()), strict=False))
            counts.append((found["Ir"], sum(found[kind] for kind in ("ILmr", "DLmr", "DLmw"))))
    nothing, calls = counts[0::2], counts[1::2]
    instructions, lines = (
        int(statistics.median(one[at] for one in calls) - statistics.median(one[at] for one in nothing))
        for at in (0, 1)
    )
    return instructions, lines


def _count(series: int) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder)
        command = [*under_valgrind(folder, "--cache-sim=yes", f"--LL={_CACHE}"), sys.executable, "-m", "bench.lines"]
        command += ["--in-here", str(series), str(folder)]
        subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=True)
        files = sorted(folder.glob("counts.*-01"), key=lambda path: int(path.suffix[1:].partition("-")[0]))
        return touched(path.read_text() for path in files)


def main() -> None:
    """Count, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", default="0,1,10,100", help="how many scalar series the run has")
    parser.add_argument("--in-here", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.in_here:
        call(int(chosen.in_here[0]), Path(chosen.in_here[1]))
        return
    table = Table("series", "instructions", "lines of 64 bytes", title="A call of set_step, on a CPU")
    for series in map(int, chosen.series.split(",")):
        table.add_row(str(series), *(f"{number:,}" for number in _count(series)))
    Console().print(table)


if __name__ == "__main__":
    main()
