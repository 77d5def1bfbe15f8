"""Everything that only a GPU can show, in order, each part bounded and resumable: ``make gpu-day``.

    PYTHONPATH=.:kernels python -m bench.gpu_day [--out bench/results] [--again] [--list]

A part that has passed for this commit and device is not run again. Each leaves a JSON file in the folder of the day:
what ran, on which device, with which versions, how long, and what it printed. It needs torch, triton, numpy and pytest;
a part that needs more is named and left out where that is missing.
"""

import argparse
import importlib.util
import json
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
LONGEST_SECONDS = 540
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


def _tests(*files: str) -> tuple[str, ...]:
    return ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", *(f"tests/gpu/{file}" for file in files))


PARTS = (
    Part("kernels", _tests("test_histogram.py", "test_scalars.py")),
    Part("graphs", _tests("test_graphs.py"), _HOST_HALF),
    Part("histograms", ("-m", "bench.histogram_gpu")),
    *(
        Part(f"bench-{key}", ("-m", "bench", "--gpu", "--only", key), (*_HOST_HALF, "matplotlib"))
        for key in ("a", "b", "c", "d", "e", "f", "g", "counts")
    ),
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
    result: dict[str, Any] = {"part": part.name, "command": " ".join(("python", *part.arguments)), **_where()}
    if missing:
        result |= {"status": "left out", "output": f"not installed: {', '.join(missing)}"}
    else:
        began = time.monotonic()
        try:
            done = subprocess.run(
                [sys.executable, *part.arguments],
                cwd=ROOT,
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
            status = "passed" if done.returncode == 0 else f"failed with status {done.returncode}"
            result |= {"status": status, "output": done.stdout[-_TAIL:]}
        result["seconds"] = round(time.monotonic() - began, 1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{part.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


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
    """Run the parts that are not done; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder of the results")
    parser.add_argument("--again", action="store_true", help="also what has passed")
    parser.add_argument("--list", action="store_true", help="only say what would run")
    chosen = parser.parse_args(arguments)
    folder = chosen.out / f"{date.today()}-gpu-day"
    failed = False
    for part in PARTS:
        if not chosen.again and is_done(part, folder):
            print(f"{part.name:12} has passed before", flush=True)
        elif chosen.list:
            print(f"{part.name:12} python {' '.join(part.arguments)}", flush=True)
        else:
            result = run_part(part, folder)
            failed |= result["status"] not in ("passed", "left out")
            last = (result["output"].strip().splitlines() or [""])[-1]
            print(f"{part.name:12} {result['status']} in {result.get('seconds', 0):g} s: {last}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
