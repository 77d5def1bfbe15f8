"""What an optimizer's hook counts by the code of a GPU, its tables included, is what a CPU counts."""

import random

import numpy as np
import program
import pytest
import torch
from executor import launch
from memory import GlobalMemory
from torch import nn

from bench.machine_code import PARTIALS_PLACES, compile_kernel
from d9d_tracker_kernels import histogram, ops
from d9d_tracker_kernels import launch as launching

FLATTEN = launching._flatten


class Executed:
    """Stands for ``histogram.count_many``: executes its PTX on tensors of the CPU.

    Attributes:
        launches: The dtype and the number of tensors of each launch.
        partials: Its scratch memory.
    """

    def __init__(self):
        self.launches: list[tuple[torch.dtype, int]] = []
        self.partials = torch.zeros(64, PARTIALS_PLACES, 4, dtype=torch.float64)
        self._flats: dict[int, torch.Tensor] = {}
        self._compiled = {
            dtype: compile_kernel("sm_90", dtype, many=True, inline_ptx=True)
            for dtype in (torch.float32, torch.bfloat16)
        }

    def operator(self, values, counts, moments, partials, places, step, at, *settings):
        """Stand for the operator as a GPU has it."""
        ops._histogram_many_cuda(values, counts, moments, self.partials, places, step, at, *settings)

    def flatten(self, values: torch.Tensor) -> torch.Tensor:
        """Remember what lies at which address."""
        flat = FLATTEN(values)
        self._flats[flat.data_ptr()] = flat
        return flat

    def __getitem__(self, grid):
        (blocks,) = grid
        return lambda *arguments, **constants: self._launch(blocks, *arguments, **constants)

    def _launch(self, blocks, table, tensors, *state, ELEMENT, **constants):  # noqa: N803 as the kernel has it
        (dtype,) = (dtype for dtype, element in launching.ELEMENT_TYPES.items() if element == ELEMENT)
        counts, moments, partials, places, step, every, *numbers = state
        compiled = self._compiled[dtype]
        memory = GlobalMemory()
        rows = np.array([(self._place(memory, address), place) for address, place in tensors.tolist()])
        bank = [
            memory.place(name, tensor.numpy(), is_writable=True)
            for name, tensor in (("counts", counts), ("moments", moments), ("partials", partials))
        ]
        arguments = [memory.place("the table", table.numpy()), memory.place("the tensors", rows), *bank]
        arguments += [memory.place("places", places.numpy()), memory.place("the step", step.reshape(1).numpy())]
        text = program.read(compiled.asm["ptx"], compiled.metadata.shared)
        launch(text, memory, [*arguments, every, *numbers], launching.THREADS, blocks, random.Random(blocks))
        self.launches.append((dtype, len(rows)))

    def _place(self, memory: GlobalMemory, address: int) -> int:
        """Place a tensor as far from a 16-byte boundary as it is; what lies around it must not be counted."""
        flat = self._flats[address]
        before = np.full(address % 16, 0xFF, np.uint8)
        data = np.concatenate([before, flat.view(torch.uint8).numpy()])
        return memory.place("a gradient", np.append(data, np.full(-data.size % 16, 0xFF, np.uint8))) + before.size


def train(recorded) -> dict:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 33), nn.Tanh(), nn.Linear(33, 5), nn.Linear(5, 3, dtype=torch.bfloat16))
    model[2].weight = nn.Parameter(model[2].weight.detach().t().contiguous().t())  # lies in another order
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    harness = recorded(sync_every=2, max_histograms=32)
    with harness.open() as run:
        run.watch(model, parameters=True)
        for step in range(4):
            run.set_step(step)
            hidden = model[:3](torch.randn(16, 7))
            model[3](hidden.bfloat16()).float().square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()  # the next gradients lie elsewhere
    return {(record.name, record.step): record.value for record in harness.run.records}


@pytest.fixture
def executed(monkeypatch):
    """Put the executor in the place of the CPU's path; returns it once it is wanted."""

    def install() -> Executed:
        executed = Executed()
        monkeypatch.setattr(torch.ops.d9d_tracker, "histogram_many_", executed.operator)
        monkeypatch.setattr(launching, "_flatten", executed.flatten)
        monkeypatch.setattr(histogram, "count_many", executed)
        return executed

    return install


def test_it_counts_what_the_reference_counts(recorded, executed):
    expected = train(recorded)
    gpu = executed()
    found = train(recorded)
    assert set(found) == set(expected)
    assert len(found) == 2 * (5 + 6)  # a window's gradients, and parameters
    for key, histogram_ in expected.items():
        for field in ("edges", "counts"):
            assert np.array_equal(getattr(found[key], field), getattr(histogram_, field)), key
        for field in ("min", "max", "zeros", "nan", "posinf", "neginf"):
            assert getattr(found[key], field) == getattr(histogram_, field), key
        assert found[key].sum == pytest.approx(histogram_.sum, rel=1e-6, abs=1e-6), key
        assert found[key].sum_squares == pytest.approx(histogram_.sum_squares, rel=1e-6), key
    assert {dtype for dtype, _ in gpu.launches} == {torch.float32, torch.bfloat16}
    assert sum(tensors for _, tensors in gpu.launches) == 4 * (5 + 6)
    assert not gpu.partials[:, 0].any(), "the tickets must be left at zero"


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: [rows[0] + 4, *rows[1:]],
        lambda rows: [number for row in zip(rows[-2::-2], rows[1::2], strict=True) for number in row],
        lambda rows: [number for row in zip(rows[::2], rows[::-2], strict=True) for number in row],
    ],
    ids=["an element further", "addresses reversed", "places reversed"],
)
def test_wrong_tables_are_seen(recorded, executed, monkeypatch, caplog, change):
    expected = train(recorded)
    executed()
    fill = launching._fill
    monkeypatch.setattr(launching, "_fill", lambda tensors, rows: fill(tensors, change(rows)))
    found = train(recorded)
    differ = [key for key in found if not np.array_equal(found[key].counts, expected[key].counts)]
    assert differ or "cannot be counted" in caplog.text
