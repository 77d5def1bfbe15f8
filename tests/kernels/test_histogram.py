"""Runs `interpreted_histogram.py`, the tests of the Triton kernels, under Triton's interpreter.

TRITON_INTERPRET must be set before Triton is first imported, which the other tests of this session do without it:
hence a session of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).with_name("interpreted_histogram.py")


def test_the_kernels_under_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
