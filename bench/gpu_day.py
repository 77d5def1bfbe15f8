"""Everything that only a GPU can show, the riskiest first, each part bounded and resumable: ``make gpu-day``.

    PYTHONPATH=.:kernels python -m bench.gpu_day [--out FOLDER] [--seconds N] [--only graphs] [--again] [--list]

A part that has passed for this commit and device is not run again. Each takes less than four minutes and leaves a JSON
file in the folder: what ran, on which device, with which versions, how long, and what it printed. The machine needs
torch, triton, numpy and pytest; what the tracker needs beside them is carried in ``.gpu-day``, see ``make gpu-wheels``.

Exit status: 0 if all parts have passed, 1 if one failed, 2 without a GPU, 3 if ``--seconds`` were over before the last
part; then the same command goes on.
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
CARRIED = ROOT / ".gpu-day"  # packages without a GPU's code, for the machine's Python
LONGEST_SECONDS = 225
_TAIL = 20_000  # characters
_VERSIONS = ("torch", "triton", "numpy", "cupy", "cuda-cccl")
_HOST_HALF = ("pydantic", "rich", "typing_extensions")


@dataclass(frozen=True)
class Part:
    """One part of the day.

    Attributes:
        name: What it is called.
        arguments: Of the Python interpreter.
        needs: Modules that it cannot do without, beside torch, triton, numpy and pytest.
    """

    name: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()


def _tests(*arguments: str) -> tuple[str, ...]:
    first, *others = arguments
    return ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", f"tests/gpu/{first}", *others)


def _bench(key: str) -> Part:
    return Part(f"bench-{key}", ("-m", "bench", "--gpu", "--only", key, "--out", "{out}"), _HOST_HALF)


PARTS = (
    Part("graphs-by-hand", _tests("test_graphs.py", "-k", "not compiled and not training and not second"), _HOST_HALF),
    Part("graphs-compiled", _tests("test_graphs.py", "-k", "compiled or training or second"), _HOST_HALF),
    Part("scalars", _tests("test_scalars.py")),
    Part("histograms-of-others", _tests("test_histogram.py", "-k", "not adversarial and inline")),
    Part("histograms", _tests("test_histogram.py", "-k", "adversarial and inline")),
    _bench("counts"),
    Part("bandwidth", ("-m", "bench.histogram_gpu", "--out", "{out}")),
    *(_bench(key) for key in "abcdefgnp"),
    Part("portable-of-others", _tests("test_histogram.py", "-k", "not adversarial and portable")),
    Part("portable", _tests("test_histogram.py", "-k", "adversarial and portable")),
)


def run_part(part: Part, folder: Path, seconds: float = LONGEST_SECONDS) -> dict[str, Any]:
    """Run a part, and leave its result.

    Args:
        part: The part.
        folder: Where the JSON file goes.
        seconds: How long it may take; then it is stopped, and what it printed is kept.

    Returns:
        The result.
    """
    missing = [name for name in part.needs if importlib.util.find_spec(name) is None]
    arguments = [argument.format(out=folder / part.name) for argument in part.arguments]
    result: dict[str, Any] = {"part": part.name, "command": " ".join(("python", *arguments)), **_where()}
    if missing:
        result |= {"status": "failed", "output": f"not installed: {', '.join(missing)}; see make gpu-wheels"}
    else:
        began = time.monotonic()
        try:
            done = subprocess.run(
                [sys.executable, *arguments],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels", CARRIED)))},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            output = error.stdout or b""
            text = output.decode(errors="replace") if isinstance(output, bytes) else output
            result |= {"status": f"stopped after {seconds:g} s", "output": text[-_TAIL:]}
        else:
            result |= {"status": _status(part, done.returncode, done.stdout), "output": done.stdout[-_TAIL:]}
        result["seconds"] = round(time.monotonic() - began, 1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{part.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def _status(part: Part, code: int, output: str) -> str:
    if code:
        return f"failed with status {code}"
    has_passed = "pytest" not in part.arguments or re.search(r"\b\d+ passed", output)
    return "passed" if has_passed else "failed: nothing ran"


def is_done(part: Part, folder: Path) -> bool:
    """Return whether a part has passed already, for this commit and on this device.

    Args:
        part: The part.
        folder: Where its JSON file would be.
    """
    path = folder / f"{part.name}.json"
    if not path.exists():
        return False
    known = json.loads(path.read_text())
    return known["status"] == "passed" and {key: known.get(key) for key in ("commit", "device")} == {
        key: _where()[key] for key in ("commit", "device")
    }


def _where() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "date": str(date.today()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device",
        "commit": commit.stdout.strip(),
        "versions": {name: found for name in _VERSIONS if (found := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def main(arguments: list[str] | None = None) -> int:
    """Run the parts that are not done; see above for what is returned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = ROOT / "bench" / "results" / f"{date.today()}-gpu-day"
    parser.add_argument("--out", type=Path, default=folder, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no part that may take longer")
    parser.add_argument("--only", help="a part, or several with commas between")
    parser.add_argument("--again", action="store_true", help="also what has passed")
    parser.add_argument("--list", action="store_true", help="only say what would run")
    chosen = parser.parse_args(arguments)
    end = time.monotonic() + chosen.seconds
    parts = [part for part in PARTS if chosen.only is None or part.name in chosen.only.split(",")]
    if not chosen.list and not torch.cuda.is_available():
        print("torch sees no GPU here: nothing was run")
        return 2
    failed = False
    for part in parts:
        if not chosen.again and is_done(part, chosen.out):
            print(f"{part.name:22} has passed before", flush=True)
        elif chosen.list:
            print(f"{part.name:22} python {' '.join(part.arguments)}", flush=True)
        elif time.monotonic() + LONGEST_SECONDS > end:
            print(f"{part.name:22} and what follows wait for the next call", flush=True)
            return 3
        else:
            result = run_part(part, chosen.out)
            failed |= result["status"] != "passed"
            last = (result["output"].strip().splitlines() or [""])[-1]
            print(f"{part.name:22} {result['status']} in {result.get('seconds', 0):g} s: {last}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.path.append(str(CARRIED))
    sys.exit(main())
