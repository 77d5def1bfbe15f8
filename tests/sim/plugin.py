"""``PYTHONPATH=tests python -m pytest -p sim.plugin tests/gpu``: the tests of a GPU on one made of software."""

import contextlib
import os

import pytest

from .simulation import machine, simulated

_stack = contextlib.ExitStack()
# What compiles for a GPU, has kernels counted that are not Triton's here, or asks for sizes that only a GPU is fast on.
_LEFT_OUT = (
    "compiled",
    "training_with_gradient_hooks",
    "second_run",
    "variant",
    "check_step",
    "bit_for_bit",
    "deep_in",
)
_STEPS = 60


def pytest_configure() -> None:
    _stack.enter_context(simulated(int(os.environ.get("SCHEDULE", "0"))))


def pytest_unconfigure() -> None:
    _stack.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(words in item.name for words in _LEFT_OUT):
            item.add_marker(
                pytest.mark.skip(
                    reason="the simulated GPU compiles nothing and has no size at which it is fast: make test-gpu"
                )
            )
        if hasattr(item.module, "STEPS"):
            item.module.STEPS = _STEPS


@pytest.fixture(autouse=True)
def _loaded() -> None:
    machine().loaded.clear()
