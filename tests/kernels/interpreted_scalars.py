"""The scalar kernels against the reference, under Triton's interpreter: run by `test_interpreted.py`.

By hand: TRITON_INTERPRET=1 pytest tests/kernels/interpreted_scalars.py
"""

import math
import random

import pytest
import torch
from scalar_checks import COLUMNS, assert_same_state, bank, rounds, values_of_every_kind
from triton.runtime.interpreter import InterpretedFunction

from d9d_tracker_kernels import scalar_kernels
from d9d_tracker_kernels.lanes import COUNT, INITIAL, LANES, LAST, MAX, NEGATED_MIN, SUM, WEIGHT
from d9d_tracker_kernels.scalars import flat_numbers, merge_number

# numpy, which interprets, warns of what kernels do on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

LANES_OF_VALUES = (SUM, MAX, NEGATED_MIN, LAST)


def test_the_kernels_are_interpreted():
    assert isinstance(scalar_kernels.merge_values, InterpretedFunction)
    assert isinstance(scalar_kernels.empty_slots, InterpretedFunction)


@pytest.fixture
def launches(monkeypatch):
    """The numbers of values that each launch had room for."""
    sizes = []
    run = scalar_kernels.merge_values.run

    def counting(*args, **kwargs):
        sizes.append(len(args[3]) - 1)
        return run(*args, **kwargs)

    monkeypatch.setattr(scalar_kernels.merge_values, "run", counting)
    return sizes


@pytest.mark.parametrize("lane", LANES_OF_VALUES)
@pytest.mark.parametrize("weight", [1.0, 0.0, 2.5, math.nan, torch.tensor(3), torch.tensor(0.0), torch.tensor([0.5])])
def test_values_of_every_kind(lane, weight):
    actual, expected = bank(), bank()
    every = values_of_every_kind()
    for values in (every[first : first + 7] for first in range(0, len(every), 7)):
        at = list(range(3, 3 + len(values)))
        tensors, numbers = split(values)
        scalar_kernels.merge(actual, torch.arange(COLUMNS), at, tensors, numbers, lane, weight)
        merge_all(expected, at, [*tensors, *numbers], lane, weight)
    assert_same_state(actual, expected)


@pytest.mark.parametrize(("count", "room"), [(1, [1]), (2, [8]), (8, [8]), (9, [64]), (64, [64]), (65, [64, 1])])
def test_one_launch_for_up_to_64_values(launches, count, room):
    actual, expected = bank(), bank()
    at = random.Random(count).sample(range(COLUMNS), count)
    tensors = [torch.tensor(float(index)) for index in range(count // 2)]
    numbers = [index / 3 for index in range(count - count // 2)]
    scalar_kernels.merge(actual, torch.arange(COLUMNS), at, tensors, numbers, SUM, 1.0)
    merge_all(expected, at, [*tensors, *numbers], SUM, 1.0)
    assert launches == room
    assert_same_state(actual, expected)


@pytest.mark.parametrize("lane", LANES_OF_VALUES)
def test_a_table_says_which_slot_a_place_means(lane):
    table = torch.tensor([5, -1, 0, COLUMNS - 1])
    actual, expected = bank(), bank()
    for at, values in rounds(lane, places=len(table)):
        scalar_kernels.merge(actual, table, at, [], values, lane, 1.0)
        slots = table[at].tolist()
        kept = [(slot, value) for slot, value in zip(slots, values, strict=True) if slot >= 0]
        merge_all(expected, [slot for slot, _ in kept], [value for _, value in kept], lane, 1.0)
    assert_same_state(actual, expected)


@pytest.mark.parametrize("slots", [0, 1, 255, 256, 257, COLUMNS])
def test_a_step_begins_with_the_slots_in_use_empty(slots):
    state = torch.arange(LANES * COLUMNS, dtype=torch.float64).reshape(LANES, COLUMNS)
    before, step = state.clone(), torch.tensor([3])
    for _ in range(2):  # what may be done twice
        scalar_kernels.begin_step(state, slots, step, 2**40)
    assert step.item() == 2**40
    assert torch.equal(state[:, :slots], torch.tensor(INITIAL, dtype=torch.float64)[:, None].expand(-1, slots))
    assert torch.equal(state[:, slots:], before[:, slots:])


def test_arguments_need_no_variant_of_their_own():
    values = [0.0, 1.0, -1.0, math.inf, 5e-324, torch.ones(1), torch.zeros(1, dtype=torch.int8)]
    targets, lows, highs = scalar_kernels.pack(range(7), values, 16.0)
    assert len(targets) == len(lows) == len(highs) == 9
    # Odd, not 1, and in need of 64 bits.
    assert all(number % 2 == 1 and 2**31 < number < 2**62 for number in (*targets, *lows, *highs))


def split(values):
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    return tensors, [value for value in values if not isinstance(value, torch.Tensor)]


def merge_all(state, slots, values, lane, weight):
    for slot, value in zip(slots, values, strict=True):
        merge_number(flat_numbers(state), state.stride(), slot, lane, float(value), float(weight))


def test_weights_and_counts_are_those_of_the_calls():
    state = bank()
    scalar_kernels.merge(state, torch.arange(COLUMNS), [4], [], [7.0], SUM, 2.5)
    scalar_kernels.merge(state, torch.arange(COLUMNS), [4], [torch.tensor(True)], [], SUM, torch.tensor(2))
    assert state[[SUM, WEIGHT, COUNT], 4].tolist() == [19.5, 4.5, 2.0]
