"""What eager scalars and steps launch on a GPU: counted with the kernels stood in for."""

from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from d9d_tracker.bank.scalars import ScalarBank
from d9d_tracker_kernels import scalar_kernels
from d9d_tracker_kernels import scalars as operator

VIEWS = {"aten::slice.Tensor", "aten::select.int", "aten::detach", "aten::view"}


class Kernels(TorchDispatchMode):
    """Everything that would be launched: kernels of torch by name, and those of ours."""

    def __init__(self):
        super().__init__()
        self.launched = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() not in VIEWS:
            self.launched.append(func.name())
        return func(*args, **(kwargs or {}))

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.launched.append("ours")


@pytest.fixture
def kernels():
    kernels = Kernels()
    with (
        mock.patch.object(scalar_kernels, "merge_values", kernels),
        mock.patch.object(scalar_kernels, "empty_slots", kernels),
        kernels,
    ):
        yield kernels


@pytest.mark.parametrize("count", [1, 10, 64])
@pytest.mark.parametrize("has_places", [False, True], ids=["eager", "captured"])
def test_scalars_are_one_launch(kernels, count, has_places):
    bank = ScalarBank(1, 100, torch.device("cpu"))
    numbers = [float(number) for number in range(count // 2)]
    tensors = [torch.ones(()) for _ in range(count - count // 2)]
    places = torch.arange(100) if has_places else bank.places
    weight = torch.ones(())
    kernels.launched.clear()
    operator._merge_cuda(bank.current, places, list(range(count)), tensors, numbers, 0, weight, 1.0)
    assert kernels.launched == ["ours"]


def test_a_step_is_two_launches(kernels):
    bank = ScalarBank(8, 100, torch.device("cpu"))
    bank.host = None  # as on a GPU
    kernels.launched.clear()
    bank.file(3, slots=10)
    bank.begin(slots=10, step=4)
    assert kernels.launched == ["aten::copy_", "ours"]
