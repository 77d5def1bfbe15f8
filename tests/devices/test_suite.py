"""Everything that a device without a bank must show, in processes of their own: the simulated one stays for life."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from device_programs import everything, watched
from devices.device import NAME
from devices.operators import OPERATORS, STRUCTURAL
from devices.plugin import LEFT_OUT, LEFT_OUT_HERE
from jobs import run_job

TESTS = Path(__file__).parents[1]
# What runs there, and how many tests pass at least; plugin.py has what is left out, and why.
SUITES = {
    "devices/on_device": 88,
    "accumulator": 120,
    "bank": 92,
    "calls": 210,
    "pipeline": 65,
    "watch": 159,
    "windows": 36,
}
METAL = "MPS", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional"
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="the simulated device is compiled by c++")


@needs_compiler
@pytest.mark.parametrize(
    "suite", [pytest.param(one, marks=[] if one == "devices/on_device" else pytest.mark.slow) for one in SUITES]
)
def test_it_passes(suite):
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), str(TESTS.parent / "kernels")])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "devices.plugin"]
    done = subprocess.run(
        [*command, "-m", "not gpu and not slow", f"tests/{suite}"],
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) >= SUITES[suite], done.stdout[-300:]


def test_make_runs_the_same():
    rule = (TESTS.parent / "Makefile").read_text().split("\ntest-device:")[1].split("\n\n")[0]
    assert set(re.findall(r"tests/(\S+)", rule)) == SUITES.keys()


@pytest.mark.parametrize("test", [test for tests in (LEFT_OUT | LEFT_OUT_HERE).values() for test in tests])
def test_what_is_left_out_is_there(test):
    path, _, name = test.partition("::")
    assert f"def {name}" in (TESTS / path).read_text()


@needs_compiler
@pytest.mark.parametrize("program", [everything, watched], ids=lambda program: program.__name__)
def test_two_ranks_give_what_they_give_on_the_host(program, tmp_path):
    for name in (NAME, "cpu"):
        (tmp_path / name).mkdir()
    found, expected = (run_job(program, 2, tmp_path / name, name) for name in (NAME, "cpu"))
    assert len(expected[0].result["content"]) > 100
    for one, other in zip(found, expected, strict=True):
        assert repr(one.result["content"]) == repr(other.result["content"])  # NaN equals itself there
        assert one.result["copies"] == other.result["copies"]


def test_each_operator_has_a_kernel_for_metal():
    """As torch documents it: in the file that its own operators are generated from."""
    folder = Path(torch.__file__).parents[1] / "torchgen" / "packaged" / "ATen" / "native"
    functions = yaml.safe_load((folder / "native_functions.yaml").read_text())
    kernels = {one["func"].split("(")[0]: one for one in functions}
    for name in OPERATORS - STRUCTURAL:
        known = kernels[name.removeprefix("aten::")]
        known = kernels[known["structured_delegate"]] if "structured_delegate" in known else known
        keys = {key.strip() for keys in known.get("dispatch", {}) for key in keys.split(",")}
        assert keys & set(METAL), name
