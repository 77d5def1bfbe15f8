"""The kernels, their tests on a GPU and their benchmark need torch, triton, numpy and pytest only."""

import subprocess
import sys

SCRIPT = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {"matplotlib", "pydantic", "pydantic_core", "rich"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
import bench.histogram_gpu
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--collect-only", "tests/gpu"]))
"""


def test_a_machine_with_little_installed_can_run_them(pytestconfig):
    environment = {
        "PATH": "",
        "PYTHONPATH": ":".join([str(pytestconfig.rootpath), *sys.path]),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=pytestconfig.rootpath,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_histogram.py::test_any_strides" in done.stdout
