"""The lives are a module that lies beside the tests of the accumulator; retries follow at once."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "accumulator"))


@pytest.fixture(autouse=True)
def quick(quick_retries):
    pass
