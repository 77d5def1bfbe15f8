"""Retries follow at once."""

import pytest


@pytest.fixture(autouse=True)
def quick(quick_retries):
    pass
