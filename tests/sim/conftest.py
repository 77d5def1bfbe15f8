"""``sim`` is a folder of modules that lies among the tests; its trainings use the helpers of other tests."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "kernels")]
sys.path.append(str(TESTS / "ptx"))


def pytest_collection_modifyitems(items):
    reason = None
    if torch.version.cuda is not None or torch.version.hip is not None:
        reason = "the simulated GPU stands in for CUDA in a torch that is built without it: install torch for the CPU"
    elif shutil.which("c++") is None:
        reason = "the simulated driver is compiled by c++: install a C++ compiler"
    for item in items if reason else ():
        if TESTS / "sim" in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))
