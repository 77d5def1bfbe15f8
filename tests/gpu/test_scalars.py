"""The scalar operator on a GPU against the reference on the CPU; see test_histogram.py for how to run it."""

import pytest
import torch
from scalar_checks import COLUMNS, assert_same_state, bank, values_of_every_kind

from d9d_tracker_kernels.lanes import INITIAL, LAST, MAX, NEGATED_MIN, SUM
from d9d_tracker_kernels.scalars import merge_scalars_

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("weight", [1.0, 0.0, 2.5, torch.tensor(3), torch.tensor([0.5])])
@pytest.mark.parametrize("lane", [SUM, MAX, NEGATED_MIN, LAST])
def test_values_of_every_kind(lane, weight):
    expected = bank()
    actual = expected.cuda()
    every = values_of_every_kind()
    table = torch.arange(COLUMNS).roll(5)
    factor = weight if isinstance(weight, torch.Tensor) else None
    number = 1.0 if isinstance(weight, torch.Tensor) else weight
    for size in (1, 7, 64, 100):
        for first in range(0, len(every), size):
            part = every[first : first + size]
            tensors = [value for value in part if isinstance(value, torch.Tensor)]
            numbers = [value for value in part if not isinstance(value, torch.Tensor)]
            at = list(range(len(part)))
            merge_scalars_(expected, table, at, tensors, numbers, lane, factor, number)
            moved = [tensor.detach().cuda() for tensor in tensors]
            on_gpu = None if factor is None else factor.cuda()
            merge_scalars_(actual, table.cuda(), at, moved, numbers, lane, on_gpu, number)
    assert_same_state(actual.cpu(), expected)


def test_a_step_begins_without_a_wait():
    from d9d_tracker_kernels.scalar_kernels import begin_step

    state, step = torch.ones(6, COLUMNS, dtype=torch.float64, device="cuda"), torch.zeros(1, dtype=torch.int64).cuda()
    begin_step(state, 1, step, 1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        begin_step(state, 10, step, 2**40)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert step.item() == 2**40
    assert state[:, :10].cpu().tolist() == [[initial] * 10 for initial in INITIAL]
    assert bool((state[:, 10:] == 1).all())


def test_one_variant_whatever_the_values():
    from d9d_tracker_kernels.scalar_kernels import merge_values

    state = bank().cuda()
    device = torch.cuda.current_device()
    seen = set()
    for value in (0.0, 1.0, 16.0, -3.5, torch.ones(1, device="cuda"), torch.zeros(64, device="cuda")[1]):
        tensors, numbers = ([value], []) if isinstance(value, torch.Tensor) else ([], [value])
        merge_scalars_(state, torch.arange(COLUMNS, device="cuda"), [3], tensors, numbers, SUM, None, 1.0)
        seen.add(len(merge_values.device_caches[device][0]))
    assert len(seen) == 1
