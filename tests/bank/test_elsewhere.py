"""What is kept until the window ends, or merged sooner where it is much, is what the bank itself would have merged.

Here with tensors of the host for those of a device without a bank; see tests/devices and tests/sim/test_elsewhere.py.
"""

import numpy as np
import pytest
import torch

from d9d_tracker import LinearBinning
from d9d_tracker.bank import elsewhere as elsewhere_module
from d9d_tracker.bank.elsewhere import Elsewhere
from d9d_tracker.bank.places import Target
from d9d_tracker.bank.scalars import ScalarBank
from d9d_tracker.devices.arrived import Arrived, Parts, Store
from d9d_tracker.devices.streams import Streams
from d9d_tracker.series.series import VALUE_LANE
from d9d_tracker.windows.clock import Clock
from d9d_tracker_kernels.bank import allocate
from d9d_tracker_kernels.binning import CALLS

NOW = Clock(3, 0.0, 0, [], [])
BINNING = LinearBinning(low=0, high=4, bins=4).parameters()


@pytest.fixture
def bank():
    scalars, histograms = ScalarBank(2, 4, torch.device("cpu")), allocate(4, "cpu")
    scalars.step.fill_(NOW.step)
    return scalars, histograms, Elsewhere(scalars, histograms, Streams())


def arrive(bank):
    scalars, histograms, elsewhere = bank
    parts = Parts([scalars.current.numpy()], histograms.counts.numpy(), histograms.moments.numpy())
    elsewhere.arrived().merge_into(parts)
    elsewhere.reset()


def test_scalars_are_those_of_the_bank(bank):
    scalars, _, elsewhere = bank
    target = Target([2, 1, 0], torch.tensor([0, -1, 3]))  # the place in the middle means no slot
    values = [torch.tensor(2.0), 5.0, torch.tensor(1)]
    scalars.write(target, [float(value) for value in values], "mean", 0.5)
    expected = scalars.current.clone()
    scalars.reset()
    elsewhere.merge(NOW, target, values, VALUE_LANE["mean"], torch.tensor(0.5))
    assert elsewhere.entries
    assert not torch.equal(scalars.current, expected)
    arrive(bank)
    assert torch.equal(scalars.current[:, :4], expected[:, :4])
    assert not elsewhere.entries


@pytest.mark.parametrize(
    ("dtype", "elements", "is_kept"),
    [(torch.float32, 10, True), (torch.float32, 5000, True), (torch.float64, 10, True), (torch.float64, 5000, False)],
)
def test_populations_are_those_of_the_bank_which_counts_at_once_what_cannot_be_kept(bank, dtype, elements, is_kept):
    scalars, histograms, elsewhere = bank
    table, values = torch.tensor([1, -1]), (torch.arange(elements, dtype=dtype) % 41) / 8
    expected = allocate(4, "cpu")
    expected.count_([values], [0], table, scalars.step, 1, *BINNING)
    elsewhere.count(NOW, [(0, values), (1, values)], table, BINNING)
    assert (histograms.counts[1, CALLS] == 0) == is_kept
    arrive(bank)
    assert torch.equal(histograms.counts, expected.counts)
    np.testing.assert_allclose(histograms.moments, expected.moments, rtol=1e-6)


def test_counts_are_added_unless_their_place_means_no_slot(bank):
    _, histograms, elsewhere = bank
    for place in (0, 1):
        elsewhere.add_counts(NOW, torch.tensor([1, 2, 3]), place, torch.tensor([2, -1]))
    arrive(bank)
    assert histograms.counts.sum(1)[2] > 6
    assert histograms.counts[[0, 1, 3]].sum() == 0


def test_what_is_much_is_merged_before_the_window_ends(bank, monkeypatch):
    monkeypatch.setattr(elsewhere_module, "_MOST_ENTRIES", 2)
    scalars, _, elsewhere = bank
    for _ in range(7):
        elsewhere.merge(NOW, Target([0], torch.tensor([0])), [1.0], VALUE_LANE["sum"], None)
        assert len(elsewhere.arrived().entries) <= 2
    assert scalars.current[0, 0] == 6.0  # two merges of three
    arrive(bank)
    assert scalars.current[0, 0] == 7.0


@pytest.mark.parametrize(("dtype", "value"), [(torch.uint32, 3_000_000_000), (torch.uint64, 2**40), (torch.uint8, 200)])
def test_unsigned_numbers_are_kept_as_they_are(dtype, value):
    store = Store(torch.device("cpu"), 1)
    kept = store.keep(torch.tensor(value, dtype=dtype))
    assert Arrived([], {kept.device: store.read()})._read(kept).item() == value
