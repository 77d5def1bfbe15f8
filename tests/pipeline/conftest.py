"""Retries follow at once; windows of known values are made by a module that lies beside the tests of windows."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "windows"))


@pytest.fixture(autouse=True)
def quick(quick_retries):
    pass
