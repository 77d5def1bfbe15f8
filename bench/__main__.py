"""The benchmark: ``python -m bench`` on the CPU, ``python -m bench --gpu`` on a GPU."""

import argparse
import importlib.util
import logging
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from . import counts, flush, gpt, histograms, memory, norms, panel, report, scalars, share, slow_backend
from .plan import Plan

_HERE = Path(__file__).parent
WORKLOADS: dict[str, Callable[[Plan], report.Result]] = {
    "a": scalars.run,
    "b": gpt.run,
    "c": histograms.run,
    "d": slow_backend.run,
    "e": flush.run,
    "f": memory.run,
    "g": share.run,
    "n": norms.run,
    "p": panel.run,
    "counts": counts.run,
}


def main() -> int:
    """Measure, print, and leave a JSON file and plots."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--gpu", action="store_true", help="measure on the GPU")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to see that it runs; the figures mean nothing"
    )
    parser.add_argument("--only", default=",".join(WORKLOADS), help="workloads, for example a,c (default: all)")
    parser.add_argument(
        "--threads", type=int, default=_spare_one(), help="of torch on the CPU (default: a core is left to the others)"
    )
    parser.add_argument("--out", type=Path, default=_HERE / "results", help="folder of the results")
    parser.add_argument("--readme", action="store_true", help="put the results into bench/README.md")
    chosen = parser.parse_args()
    keys = chosen.only.split(",")
    if unknown := set(keys) - set(WORKLOADS):
        parser.error(f"no workload {', '.join(sorted(unknown))}: choose from {', '.join(WORKLOADS)}")
    if chosen.quick and chosen.readme:
        parser.error("the figures of --quick mean nothing: they do not belong into the README")
    device = "cuda" if chosen.gpu else "cpu"
    if chosen.gpu and not torch.cuda.is_available():
        parser.error("torch sees no GPU: leave --gpu out to measure on the CPU")
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    if not chosen.gpu:
        torch.set_num_threads(1 if chosen.quick else chosen.threads)
    _quiet()
    console = Console(width=None if sys.stdout.isatty() else 160)
    about = report.machine(device)
    results = []
    quick = "quick-" * chosen.quick
    slug = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-") if chosen.gpu else "cpu"
    name = f"{about['date'][:10]}-{quick}{slug}"
    with tempfile.TemporaryDirectory(prefix="d9d_tracker-bench-") as folder:
        plan = Plan(device, chosen.quick, Path(folder))
        for key in (key for key in WORKLOADS if key in keys):
            start = time.perf_counter()
            with console.status(f"workload {key}"):
                result = WORKLOADS[key](plan)
            result.series["seconds"] = time.perf_counter() - start
            report.show(console, result)
            results.append(result)
            report.write_json(chosen.out / f"{name}.json", about, results)  # what was measured outlives an end by hand
    words = f"{about['device']} · torch {about['versions']['torch']} · {about['date'][:10]}{' · QUICK' * chosen.quick}"
    files = _draw(results, chosen.out / name, words)
    console.print(f"{chosen.out / name}.json and {len(files)} plots beside it", markup=False, highlight=False)
    if chosen.readme:
        readme = _HERE / "README.md"
        content = report.markdown(about, results, [Path(os.path.relpath(file, _HERE)) for file in files])
        report.refresh(readme, "gpu" if chosen.gpu else "cpu", content)
    return 0


def _draw(results: list[report.Result], folder: Path, words: str) -> list[Path]:
    if importlib.util.find_spec("matplotlib") is None:  # as on a GPU's machine: the figures are what counts
        return []
    from . import plots

    return plots.draw(results, folder, words)


def _spare_one() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)


def _quiet() -> None:
    """Keep the contenders from printing into the tables."""
    os.environ |= {"WANDB_SILENT": "true", "MLFLOW_LOGGING_LEVEL": "ERROR"}
    for name in ("lightning", "alembic", "torch._dynamo"):  # the last explains the breaks counts.py provokes
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"aim\..*|pkg_resources")


if __name__ == "__main__":
    sys.exit(main())
