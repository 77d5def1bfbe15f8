"""Runs `interpreted_histogram.py` and `interpreted_scalars.py`, the tests of the kernels, in Triton's interpreter.

TRITON_INTERPRET must be set before Triton is first imported, which the other tests of this session do without it:
hence a session of its own.
"""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

TESTS = ("interpreted_histogram.py", "interpreted_scalars.py")


@pytest.mark.skipif(
    Version(version("triton")) < Version("3.8"),
    reason="tl.minimum and tl.maximum return NaN here, which those of no GPU do: install Triton 3.8 or newer",
)
def test_the_kernels_under_the_interpreter():
    paths = [str(Path(__file__).with_name(name)) for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
