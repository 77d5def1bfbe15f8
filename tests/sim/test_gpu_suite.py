"""The GPU day as it runs, on the simulated GPU, in tiny sizes: what needs no compiler can pass on a GPU."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from sim.simulation import simulated

from bench import gpu_day

TESTS = Path(__file__).parents[1]
PARTS = {part.name: part for part in gpu_day.PARTS}
PASSED = {"graphs-by-hand": 3, "scalars": 21, "histograms-of-others": 10, "histograms": 60}  # how many pass at least
BENCHES = [part.name for part in gpu_day.PARTS if "pytest" not in part.arguments]
# Behind the part with the compiled graphs, which only a GPU can run.
OTHERS = [name for name in (*BENCHES, *PARTS) if name not in PASSED and name != "graphs-compiled"]


def _in_tiny(part: gpu_day.Part) -> gpu_day.Part:
    if "pytest" in part.arguments:
        return part
    _, module, *others = part.arguments
    module, quick = ("bench.__main__", ["--quick"]) if module == "bench" else (module, [])
    return replace(part, arguments=("-m", "sim.dry_run", module, *others, *quick))


@pytest.fixture(autouse=True)
def _on_the_simulated_gpu(monkeypatch):
    monkeypatch.setattr(gpu_day, "CARRIED", TESTS)
    monkeypatch.setattr(gpu_day, "PARTS", tuple(map(_in_tiny, gpu_day.PARTS)))
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p sim.plugin")


@pytest.mark.parametrize("name", PASSED)
def test_its_tests_pass(name, tmp_path):
    result = gpu_day.run_part(PARTS[name], tmp_path)
    assert result["status"] == "passed", result["output"]
    assert int(re.search(r"(\d+) passed", result["output"])[1]) >= PASSED[name]


def _day(folder, *names):
    """Run the day's script, which sees a GPU; return its exit status and the results."""
    with simulated(0):
        status = gpu_day.main(["--out", str(folder), "--only", ",".join(names)])
    return status, [json.loads((folder / f"{name}.json").read_text()) for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("name", dict.fromkeys(OTHERS))
def test_the_day_runs_its_other_parts(name, tmp_path):
    status, (result,) = _day(tmp_path, name)
    assert (status, result["device"]) == (0, "a GPU made of software"), result["output"]
    if name in BENCHES:
        (found,) = (tmp_path / name).glob("*.json")
        assert json.loads(found.read_text())["device"] == "a GPU made of software"
