"""Parts of the GPU day as it runs them, on the simulated GPU: what needs no compiler can pass on a GPU."""

import re
from pathlib import Path

import pytest

from bench import gpu_day

TESTS = Path(__file__).parents[1]
PARTS = {part.name: part for part in gpu_day.PARTS}
PASSED = {"graphs-by-hand": 3, "scalars": 21, "histograms-of-others": 10, "histograms": 60}  # how many pass at least


@pytest.fixture(autouse=True)
def _on_the_simulated_gpu(monkeypatch):
    monkeypatch.setattr(gpu_day, "CARRIED", TESTS)
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p sim.plugin")


@pytest.mark.parametrize("name", PASSED)
def test_its_tests_pass(name, tmp_path):
    result = gpu_day.run_part(PARTS[name], tmp_path)
    assert result["status"] == "passed", result["output"]
    assert int(re.search(r"(\d+) passed", result["output"])[1]) >= PASSED[name]
