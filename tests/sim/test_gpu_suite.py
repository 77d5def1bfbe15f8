"""What of tests/gpu needs no compiler, on the simulated GPU, in processes of their own: each can pass on a GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FILES = {"test_graphs.py": 4, "test_scalars.py": 21, "test_histogram.py": 150}  # and how many pass at least


@pytest.mark.parametrize("name", FILES)
def test_it_passes(name):
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), str(TESTS.parent / "kernels")])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "sim.plugin", f"tests/gpu/{name}"]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) >= FILES[name], done.stdout[-300:]
