"""``python -m pytest -p devices.plugin tests/bank``: tests with their tensors on a device without a bank.

That is the simulated one, or what the variable DEVICE names.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from d9d_tracker.bank import buffers

from . import device

# Why what is left out, by parts of the names of tests.
_OF_ANOTHER_BANK = (
    "test_captures.py",
    "test_devices.py",
    "test_host_scalars.py",
    "test_staging.py",
    "under_its_lock",
    "windows_wait_this_way",
    "a_series_that_came_after_the_state",
    "distributed_checkpoint",
    "test_skipped_steps.py",
    "stored_and_copied",
)
_WITHOUT_KERNELS = (
    "sparse",
    "packed_sequence",
    "complex",
    "conjugated",
    "export",
    "scaler",
    "amp",
    "skipped",
    "several_outputs",
)
_LEFT_OUT = {
    **dict.fromkeys(_OF_ANOTHER_BANK, "looks at the bank of the host or of CUDA itself, or hands it its memory"),
    **dict.fromkeys(_WITHOUT_KERNELS, "torch has no kernels of this device for it"),
}
NAME = os.environ.get("DEVICE", device.NAME)


def pytest_configure() -> None:
    if device.NAME == NAME:
        device.install()
    # Tests that name the host mean: where the values are.
    buffers.device_of = lambda name: torch.device(NAME, 0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for words, reason in _LEFT_OUT.items():
            if words in item.nodeid:
                item.add_marker(pytest.mark.skip(reason=reason))


@torch.compiler.assume_constant_result
def _is_of_a_test() -> bool:
    """Tell whether a test computes by it what it expects."""
    return str(Path(__file__).parents[1]) in sys._getframe(2).f_code.co_filename


class Mode(TorchFunctionMode):
    """Tensors are made on the device: of float32 where a test says float64, and on the host for its generators."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if (func is torch.Tensor.double or any(one is torch.float64 for one in args)) and _is_of_a_test():
            args = (args[0].cpu(), *args[1:])
        if func in _device_constructors() and kwargs.get("device") is None:
            if kwargs.get("dtype") == torch.float64:
                kwargs["dtype"] = torch.float32
            return func(*args, **{**kwargs, "device": "cpu" if kwargs.get("generator") else NAME}).to(NAME)
        return func(*args, **kwargs)


@pytest.fixture(autouse=True)
def _on_the_device():
    with Mode():
        yield
