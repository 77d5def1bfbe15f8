"""The steps whose compilation is measured."""

import pytest
import torch

from bench.first_step import STEPS


@pytest.mark.parametrize("kind", STEPS)
def test_a_step_has_a_hundred_numbers(kind):
    values = list(STEPS[kind]()(torch.randn(32, 64)))
    assert [value.numel() for value in values] == [1] * 100
    assert all(value.requires_grad for value in values)
