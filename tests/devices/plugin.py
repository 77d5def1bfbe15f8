"""``python -m pytest -p devices.plugin tests/bank``: tests with their tensors on a device without a bank.

That is the simulated one, or what the variable DEVICE names.
"""

import os

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from d9d_tracker.bank import buffers

from . import device

# Why what is left out: files of tests, or single tests of them.
LEFT_OUT = {
    "looks at the bank of the host or of CUDA itself, or hands it its memory": (
        "bank/test_captures.py",
        "bank/test_elsewhere.py",
        "bank/test_staging.py",
        "bank/test_buffers.py::test_eager_code_changes_the_bank_under_its_lock",
        "bank/test_host_scalars.py::test_what_a_call_asks_of_torch_is_to_read_the_value",
        "accumulator/test_state.py::test_a_series_that_came_after_the_state_is_empty_in_the_rows_before_it",
    ),
    "is of processes of their own, which train on the host; test_suite.py has ranks on the device": (
        "watch/test_norms_of_ranks.py",
    ),
    "torch makes the lengths of sequences on the default device, and wants them on the host": (
        "watch/test_values.py::test_a_packed_sequence_is_its_values",
    ),
}
# And on the simulated device alone.
LEFT_OUT_HERE = {
    "has no sparse tensors": (
        "watch/test_norms.py::test_of_sparse_and_absent_gradients_and_of_empty_parameters",
        "watch/test_watch.py::test_watch_counts_the_values_of_sparse_gradients_and_the_parts_of_complex_numbers",
    ),
    "torch does not fall back to the host for an LSTM": (
        "watch/test_watch.py::test_of_several_outputs_the_first_has_the_name_of_the_module",
    ),
}
NAME = os.environ.get("DEVICE", device.NAME)
_CONSTRUCTORS = frozenset(one.__name__ for one in _device_constructors())
_WIDE = {torch.float64, torch.complex128}


def pytest_configure() -> None:
    if device.NAME == NAME:
        device.install()
    # Tests that name the host mean: where the values are.
    buffers.device_of = lambda name: torch.device(NAME, 0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        test = item.nodeid.split("[")[0].removeprefix("tests/")
        for reason, tests in (LEFT_OUT | (LEFT_OUT_HERE if device.NAME == NAME else {})).items():
            if test.startswith(tests):
                item.add_marker(pytest.mark.skip(reason=reason))


class Mode(TorchFunctionMode):
    """Tensors are made on the device, and on the host for generators, which are the host's.

    Of what is not the tracker's, float64 is float32 where it is made, and what is made float64 goes to the host.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        is_wide = False
        if not torch.compiler.is_compiling():
            is_wide = func is torch.Tensor.double or not _WIDE.isdisjoint(
                one for one in (*args, *kwargs.values()) if isinstance(one, torch.dtype)
            )
            is_wide = is_wide and not device.is_of_the_tracker()
        # By their names first: a compiler, which traces this for each operator, would make the set anew.
        if func.__name__ in _CONSTRUCTORS and func in _device_constructors() and kwargs.get("device") is None:
            if is_wide:
                kwargs["dtype"] = torch.float32
            return func(*args, **{**kwargs, "device": "cpu" if kwargs.get("generator") else NAME}).to(NAME)
        if is_wide and isinstance(args[0], torch.Tensor):
            args = (args[0].cpu(), *args[1:])
        return func(*args, **kwargs)


@pytest.fixture(autouse=True)
def _on_the_device():
    with Mode():
        yield
