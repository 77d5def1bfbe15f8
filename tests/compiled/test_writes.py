"""The ways of merging values into the bank, eager and traced, for the CPU and for a GPU, against plain Python."""

import math
import random

import pytest
import torch

from d9d_tracker.bank.host_scalars import as_number
from d9d_tracker.bank.places import Target
from d9d_tracker.bank.scalars import ScalarBank
from d9d_tracker.bank.writes import stacked, write_cells, write_whole
from d9d_tracker.series.series import REDUCTIONS, VALUE_LANE, ScalarSeries
from d9d_tracker.windows.window_points import finalize
from d9d_tracker_kernels.lanes import COUNT

SLOTS = 12
# Which slot each place means: in the tests, compiled code says SLOTS - 1 - slot where eager code says slot.
PLACES = torch.arange(SLOTS).flip(0)


class Reference:
    """Keeps every value and its weight."""

    def __init__(self):
        self.values: dict[int, list[tuple[float, float]]] = {}

    def write(self, slots, values, weight):
        for slot, value in zip(slots, values, strict=True):
            self.values.setdefault(slot, []).append((value, weight))

    def result(self, slot, reduce):
        values = [value for value, _ in self.values[slot]]
        if any(math.isnan(value) for value in values) and (reduce != "last" or math.isnan(values[-1])):
            return math.nan
        if reduce == "mean":
            return sum(value * weight for value, weight in self.values[slot]) / sum(w for _, w in self.values[slot])
        return {"sum": sum(values), "min": min(values), "max": max(values), "last": values[-1]}[reduce]


def writes(reduce):
    """Some writes of whole numbers to slots in and out of order, in spans and apart; some weighted, some NaN."""
    generator = random.Random(f"writes {reduce}")
    for count in (1, 1, 2, 3, 5, 8, SLOTS):
        slots = generator.sample(range(SLOTS), count)
        values = [float(generator.randint(-9, 9)) for _ in slots]
        if count == 3:
            values[0] = math.nan
        yield slots, values, generator.choice([None, 2.0, 4.0]) if reduce == "mean" else None
    yield [4, 5, 6, 9], [1.0, 2.0, 3.0, 4.0], None


def places_of(slots):
    return [SLOTS - 1 - slot for slot in slots]


def write_op(bank, slots, values, reduce, weight):
    bank.write(Target(slots, bank.places), values, reduce, weight)


def write_op_at_places(bank, slots, values, reduce, weight):
    bank.write(Target(places_of(slots), PLACES), values, reduce, weight)


def write_on_host(bank, slots, values, reduce, weight):
    numbers = [as_number(value) for value in values]
    bank.host.merge(slots, numbers, reduce, 1.0 if weight is None else as_number(weight))


def write_whole_bank(bank, slots, values, reduce, weight, places=PLACES):
    parts = (bank._slot, bank._lane, bank._added)
    write_whole(bank.current, places, places_of(slots), *traced(bank, values, reduce, weight), torch.arange, parts)


def write_own_cells(bank, slots, values, reduce, weight, places=PLACES):
    write_cells(bank.current, places, places_of(slots), *traced(bank, values, reduce, weight), torch.arange, stacked)


def traced(bank, values, reduce, weight):

    tensors = [bank._traced(value) for value in values]
    return tensors, VALUE_LANE[reduce], None if weight is None else bank._traced(weight)


@pytest.mark.parametrize("kind", [float, torch.tensor], ids=["numbers", "tensors"])
@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("write", [write_op, write_op_at_places, write_on_host, write_whole_bank, write_own_cells])
def test_writes_equal_plain_python(write, reduce, kind):
    bank, reference = ScalarBank(1, SLOTS, torch.device("cpu")), Reference()
    for slots, values, weight in writes(reduce):
        write(bank, slots, [kind(value) for value in values], reduce, None if weight is None else kind(weight))
        reference.write(slots, values, 1.0 if weight is None else weight)
    (found,) = finalize(bank.current[:, :-1].numpy()[None], [ScalarSeries("x", (), reduce)] * SLOTS)
    for slot, values in reference.values.items():
        assert bank.current[COUNT, slot] == len(values)
        assert found[slot] == pytest.approx(reference.result(slot, reduce), rel=1e-15, nan_ok=True)


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("write", ["write_op", write_whole_bank, write_own_cells, "on_host"])
def test_what_has_no_slot_touches_no_other(write, reduce):
    bank = ScalarBank(1, SLOTS, torch.device("cpu"))
    before = bank.current[:, :-1].clone()
    nowhere = torch.full((SLOTS,), -1)
    values = [torch.tensor(2.0), torch.tensor(3.0)]
    if write == "write_op":
        bank.write(Target([0, 1], nowhere), values, reduce, None)
    elif write == "on_host":
        bank.host.merge([-1, -1], [2.0, 3.0], reduce, 1.0)
    else:
        write(bank, [0, 1], values, reduce, None, nowhere)
    assert torch.equal(bank.current[:, :-1], before)


def test_each_slot_is_finalized_by_its_own_reduction():
    bank = ScalarBank(1, len(REDUCTIONS), torch.device("cpu"))
    for slot, reduce in enumerate(REDUCTIONS):
        for value in (3.0, 5.0, 4.0):
            write_op(bank, [slot], [value], reduce, None)
    rows = bank.current[:, :-1].numpy()[None].repeat(2, axis=0)
    expected = {"mean": 4.0, "sum": 12.0, "min": 3.0, "max": 5.0, "last": 4.0}
    scalars = [ScalarSeries(reduce, (), reduce) for reduce in REDUCTIONS]
    assert finalize(rows, scalars).tolist() == 2 * [[expected[reduce] for reduce in REDUCTIONS]]


@pytest.mark.parametrize("write", [write_whole_bank, write_own_cells])
def test_compiled_writes_equal_eager_ones(write):
    slots, values = [3, 4, 5, 9, 0], torch.tensor([1.0, -2.0, math.inf, 4.0, 0.5]).unbind()
    banks = [ScalarBank(1, SLOTS, torch.device("cpu")) for _ in range(2)]

    def everything(bank):
        for reduce in REDUCTIONS:
            write(bank, slots, values, reduce, values[3] if reduce == "mean" else None)
            write(bank, slots[:1], values[1:2], reduce, None)

    for _ in range(2):
        everything(banks[0])
    compiled = torch.compile(everything, fullgraph=True)
    for _ in range(2):
        compiled(banks[1])
    assert torch.equal(banks[0].current, banks[1].current)
