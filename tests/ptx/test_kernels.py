"""The kernels as Triton compiles them for NVIDIA GPUs, executed on the CPU against the reference.

Thousands of random cases: `make test-ptx`, or CASES=5000 pytest tests/ptx/test_kernels.py -k random.
"""

import os

import pytest
from cases import check, random_case, variants

CASES = int(os.environ.get("CASES", "100"))


@pytest.mark.parametrize("first", range(0, CASES, 20))
def test_random_cases(first):
    for seed in range(first, min(first + 20, CASES)):
        case = random_case(seed)
        try:
            assert check(case) > 0
        except Exception as error:
            error.add_note(str(case))
            raise


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_every_variant(target):
    for case in variants(target):
        check(case)
