"""Instructions of a compiled MLP step with 1, 10 and 100 scalars: a figure that no other program disturbs.

    PYTHONPATH=.:kernels python -m bench.instructions [--out bench/results] [--only null,jsonl] [--scalars 1,10,100]

Where time cannot resolve a fiftieth of a step, instructions can: Valgrind counts those of all threads of the process,
the writing in the background included. It needs Valgrind and a C compiler, and about an hour on two cores, busy or not.
"""

import argparse
import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from .contenders import BACKENDS, ELSEWHERE, EVERY, PLACES, Contender, Nothing, Start, others, ours
from .contenders.base import Kind
from .interleave import Spread
from .models import Mlp
from .report import Result, Row, losses, machine, show, write_json
from .training import Training, forward_of
from .valgrind import ENVIRONMENT, prepare, under_valgrind

_AGAIN = "nothing, once more"
_COMPILES = 5


def count(name: str, scalars: int, folder: Path) -> None:
    """Train in this process, under Valgrind: a window that is not counted, and one that is, until it is written.

    Args:
        name: Who logs.
        scalars: How many values a step.
        folder: Where they may write; has the switch.
    """
    import torch._inductor.config as inductor

    # Valgrind knows no AVX-512, neither torch's nor what a compiler makes of -march=native.
    inductor.cpp.cxx = (str(folder / "cxx"),)  # pyright: ignore[reportAttributeAccessIssue]: Inductor's own pattern
    inductor.cpp.simdlen = 256
    torch.set_num_threads(1)
    torch.manual_seed(0)
    switch = ctypes.CDLL(str(folder / "switch.so"))
    contender = starts(folder / "files")[name]()
    model = Mlp(scalars)
    logs_outside = contender.tracks and not contender.inside
    forward = forward_of(model, Contender() if logs_outside else contender, backend="inductor")
    training = Training(contender, model, model.batch("cpu"), forward)
    training.run(_COMPILES)
    training.run(EVERY - _COMPILES, learn=False)
    contender.settle()
    switch.begin()
    training.run(EVERY)
    switch.dump()
    contender.settle()
    switch.end()
    contender.close()


def starts(folder: Path) -> dict[str, Start]:
    """Return how to start each contender, by name.

    Args:
        folder: Where they write.
    """
    return {
        Nothing.name: Nothing,
        _AGAIN: Nothing,
        **others(folder, "cpu"),
        **ours(folder, "cpu", BACKENDS, ELSEWHERE),
    }


def measure(name: str, scalars: int) -> tuple[float, float] | str:
    """Run ``count`` under Valgrind.

    Args:
        name: Who logs.
        scalars: How many values a step.

    Returns:
        Instructions a step: of all threads until all is written, and of the training thread in the loop; or why there
        are none.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder)
        child = [sys.executable, "-m", "bench.instructions", "--count", name, str(scalars), str(folder)]
        for command in (child, [*under_valgrind(folder), *child]):  # the first one fills the compiler's cache
            done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
            if done.returncode:
                return (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        totals = {path.name: _total(path) for path in folder.glob("counts*")}
        loop = totals["counts.1-01"]
        return sum(totals.values()) / EVERY, loop / EVERY


def _total(path: Path) -> int:
    found = re.search(r"^totals: (\d+)", path.read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def kind_of(name: str, folder: Path) -> Kind:
    """Return who a contender is, without starting it.

    Args:
        name: Its name.
        folder: Where it would write.
    """
    if name.startswith("d9d_tracker"):
        return "ours"
    start = starts(folder)[name]
    return start.kind if isinstance(start, type) and issubclass(start, Contender) else "package"


def tabulate(found: dict[tuple[str, int], tuple[float, float] | str]) -> Result:
    """Return the counts as a table.

    Args:
        found: What ``measure`` returned, by name and number of values.
    """
    result = Result(
        "i",
        "Instructions of a compiled MLP step with 1, 10 and 100 scalars",
        {"vs untracked": ".3f", "added, thousands": ",.0f", "of it on the training thread": ",.0f"},
        series={"plot": "instructions"},
    )
    with tempfile.TemporaryDirectory() as folder:
        for (name, scalars), counts in found.items():
            group = f"{scalars} scalar{'s' * (scalars > 1)}"
            base = found[Nothing.name, scalars]
            if isinstance(counts, str) or isinstance(base, str):
                result.missing[f"{name}, {group}"] = str(counts)
            elif name != Nothing.name:
                cells = {
                    "vs untracked": Spread.of([counts[0] / base[0]]),
                    "added, thousands": (counts[0] - base[0]) / 1e3,
                    "of it on the training thread": (counts[1] - base[1]) / 1e3,
                }
                result.rows.append(Row(name, kind_of(name, Path(folder)), cells, group=group))
    result.remarks = [
        f"Of all threads of the training's process, over {EVERY} steps and until they are written; torch on one "
        f'thread with AVX2. "{_AGAIN}" is the untracked step against itself: what the figures cannot see.',
        "Instructions are no time: those of Python wait for memory more often than those of a matrix product, so that "
        "a ratio of times is further from 1. What a writer in another process does is not counted here.",
        *losses(
            result.rows,
            "vs untracked",
            "d9d_tracker → null",
            "They keep a value as it comes; d9d_tracker merges it into six numbers a series, files a row a step, "
            "and turns windows into records on a thread.",
        ),
    ]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    parser.add_argument("--only", default="", help="parts of the contenders' names; all if empty")
    parser.add_argument("--scalars", default="1,10,100", help="how many values a step")
    parser.add_argument("--count", nargs=3, metavar=("NAME", "SCALARS", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.count:
        name, scalars, folder = arguments.count
        count(name, int(scalars), Path(folder))
        return
    if shutil.which("valgrind") is None:
        parser.error("Valgrind is not installed; it is in the packages of most systems (apt install valgrind)")
    sizes = [int(size) for size in arguments.scalars.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        names = list(starts(Path(folder)))
    wanted = [part for part in arguments.only.split(",") if part]
    names = [n for n in names if n == Nothing.name or not wanted or any(part in n for part in wanted)]
    sdks = {f"d9d_tracker → {backend}" for backend in set(BACKENDS) - {"null", "jsonl"}}
    sdks |= {f"d9d_tracker → {backend}, {PLACES[writer]}" for backend, writer in ELSEWHERE.items()}
    jobs = [(name, size) for size in sizes for name in names if size == 10 or name not in sdks]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # counts do not mind company
        counts = list(track(pool.map(measure, *zip(*jobs, strict=True)), "counting", total=len(jobs)))
    result = tabulate(dict(zip(jobs, counts, strict=True)))
    about = machine("cpu")
    show(Console(), result)
    write_json(arguments.out / f"{date.today()}-instructions.json", about, [result])
    from .plots import draw  # whose library a GPU's machine lacks, which imports the above

    draw([result], arguments.out / f"{date.today()}-cpu", f"{about['device']}, torch {torch.__version__}, AVX2")


if __name__ == "__main__":
    main()
