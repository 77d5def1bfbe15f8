"""The Triton kernels against the reference, under Triton's interpreter: run by `test_interpreted.py`.

By hand: TRITON_INTERPRET=1 pytest tests/kernels/interpreted_histogram.py
"""

import itertools
import math

import numpy as np
import pytest
import torch
from histogram_checks import adversarial_values, assert_same_histograms
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import InterpretedFunction, interpreter_builder

from d9d_tracker_kernels import histogram, launch, reference
from d9d_tracker_kernels.bank import HistogramState, allocate
from d9d_tracker_kernels.binning import CALLS, EXPONENTIAL, HEADER, INTEGER, LAST_STEP, LINEAR, Moment, cell_edges
from d9d_tracker_kernels.ops import SUPPORTED_DTYPES

launch.INLINE_PTX = False  # which the interpreter knows nothing of

# numpy, which interprets, warns of what kernels do on purpose: NaN in minima, squares beyond float32.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

BINNINGS = {
    "512 exponential": (EXPONENTIAL, 512, 0.0, 0.0),
    "1024 exponential": (EXPONENTIAL, 1024, 0.0, 0.0),
    "2048 exponential": (EXPONENTIAL, 2048, 0.0, 0.0),
    "uneven": (LINEAR, 700, -1.3, 2.1),
    "most linear": (LINEAR, 2046, -3.0, 3.0),
    "integer": (INTEGER, 64, 0.0, 0.0),
}
ONE_OF_EACH_KIND = ("2048 exponential", "uneven", "integer")
EXPONENTIAL_BINNING = BINNINGS["2048 exponential"]
TILE = {4: 8192, 2: 8192, 1: 8192, 8: 4096}


def bank(rows, programs=3):
    """A bank on the CPU with the scratch that `allocate` gives GPUs only."""
    state = allocate(rows, "cpu")
    return HistogramState(
        state.counts, state.moments, torch.zeros(rows, 1 + programs, 4, dtype=torch.float64), state.places
    )


def buffers(state):
    return state.counts, state.moments, state.partials, state.places


def check(values, binning, programs=3, every=1):
    state, expected = bank(2, programs), allocate(2, "cpu")
    launch.launch(values, (*buffers(state), torch.tensor([6])), 1, every, binning)
    reference.histogram_(values, expected.counts, expected.moments, 6, 1, *binning)
    assert_same_histograms(state, expected)
    assert not state.partials[:, 0].any(), "the ticket must be left at zero"


def test_the_kernels_are_interpreted():
    assert isinstance(histogram.count_one, InterpretedFunction)
    assert isinstance(histogram.count_many, InterpretedFunction)


# A kernel widens its values and then finds their cells: each dtype with each kind of binning, and two with all of them.
@pytest.mark.parametrize(
    ("dtype", "binning"),
    [
        (dtype, binning)
        for dtype in sorted(SUPPORTED_DTYPES, key=str)
        for binning in (BINNINGS if dtype in (torch.float32, torch.float64) else ONE_OF_EACH_KIND)
    ],
    ids=str,
)
def test_adversarial_values(dtype, binning):
    for values in adversarial_values(dtype).values():
        check(values, BINNINGS[binning], programs=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8], ids=str)
def test_sizes_around_tiles_at_any_alignment(dtype):
    tile = TILE[dtype.itemsize]
    storage = (torch.randn(3 * tile + 64, generator=torch.Generator().manual_seed(3)) * 40).to(dtype)
    misaligned = 16 // dtype.itemsize - 1
    for numel in (0, 1, 15, 17, tile - 1, tile, tile + 1, 2 * tile, 3 * tile - 5):
        for offset, programs in ((0, 1), (1, 2), (misaligned, 5)):
            check(storage[offset : offset + numel], EXPONENTIAL_BINNING, programs)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t(),
        lambda x: x.reshape(6, 5, 40, 20).permute(2, 0, 3, 1),
        lambda x: x[:, ::3],
        lambda x: x[0, 0],
        lambda x: x[:1, :1].expand(30, 50),
        lambda x: torch.complex(x, x).conj().imag,
    ],
    ids=["transposed", "permuted", "strided", "scalar", "expanded", "negated view"],
)
def test_any_strides(view):
    check(view(torch.randn(120, 200, generator=torch.Generator().manual_seed(2))), EXPONENTIAL_BINNING)


def test_a_dense_permutation_is_not_copied():
    values = torch.randn(4, 5, 6).permute(2, 0, 1)
    assert launch._flatten(values).data_ptr() == values.data_ptr()


@settings(max_examples=10)
@given(low=st.floats(-1e4, 1e4, width=32), width=st.floats(0.5, 1e4, width=32), bins=st.integers(1, 2046))
@example(low=0.0, width=1.0, bins=10)
@example(low=1000.0, width=1.0, bins=64)
@example(low=-3.0, width=6.0, bins=2046)
def test_every_linear_edge_separates_its_neighbours(low, width, bins):
    high = float(np.float32(low + width))
    binning = (LINEAR, bins, low, high)
    try:
        edges = torch.from_numpy(cell_edges(*binning))
    except ValueError:
        return
    infinity = torch.tensor(math.inf)
    for dtype in (torch.float32, torch.float64):
        at = edges.to(dtype)
        check(torch.cat([at, at.nextafter(infinity.to(dtype)), at.nextafter(-infinity.to(dtype))]), binning)


def test_many_tensors_in_one_launch_each_dtype(monkeypatch):
    launches = []
    run = histogram.count_many.run
    monkeypatch.setattr(histogram.count_many, "run", lambda *args, **kwargs: (launches.append(1), run(*args, **kwargs)))
    generator = torch.Generator().manual_seed(4)
    sizes = [0, 1, 5, 8191, 8193, 30000, 3, 20000]
    values = [torch.randn(size + 2, generator=generator)[size % 3 :][:size] for size in sizes]
    values[3][::7] = math.nan
    values += [torch.randn(100, 90, generator=generator).bfloat16().t(), torch.ones(3, dtype=torch.bool)]
    rows = [3, 9, 0, 1, 2, 8, 7, 6, 5, 4]
    for binning in (EXPONENTIAL_BINNING, BINNINGS["uneven"]):
        state, expected = bank(10), allocate(10, "cpu")
        launches.clear()
        for now in (4, 5):
            launch.launch_many(values, (*buffers(state), torch.tensor([now])), rows, 1, binning)
            for tensor, row in zip(values, rows, strict=True):
                reference.histogram_(tensor, expected.counts, expected.moments, now, row, *binning)
        assert len(launches) == 2 * 3
        assert_same_histograms(state, expected)
        assert not state.partials[:, 0].any()


def test_pointer_tables_change_only_with_addresses(monkeypatch):
    monkeypatch.setattr(launch, "_plans", type(launch._plans)())
    filled = []
    fill = launch._fill
    monkeypatch.setattr(launch, "_fill", lambda tensors, rows: (filled.append(rows), fill(tensors, rows)))
    state = bank(2)
    first, second = torch.randn(10), torch.randn(2, 20)

    def call(*values):
        launch.launch_many(values, (*buffers(state), torch.tensor([1])), [0, 1], 1, EXPONENTIAL_BINNING)

    call(first, second)
    call(first, second)
    assert len(filled) == 1
    moved = second.clone()
    call(first, moved)
    assert filled[1] == (first.data_ptr(), 0, moved.data_ptr(), 1)
    assert len(launch._plans) == 1
    assert state.counts[:, HEADER:].sum(1).tolist() == [30, 120]


class Allocations(TorchDispatchMode):
    """The addresses of what the operators of this thread allocate."""

    def __init__(self):
        super().__init__()
        self.addresses = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.addresses |= addresses(result) - addresses((args, kwargs))
        return result


def addresses(tree):
    return {leaf.data_ptr() for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)}


def test_what_outlives_a_call_is_not_allocated_by_its_thread(monkeypatch):
    monkeypatch.setattr(launch, "_plans", type(launch._plans)())
    state, values = bank(1), torch.randn(10)
    with Allocations() as allocations:
        plan, pointers = launch._locate([(values, 0)], torch.float32, state.partials)
        temporary = torch.zeros(1)
    assert addresses(temporary) <= allocations.addresses
    assert not addresses([plan.table, pointers]) & allocations.addresses


def test_a_plan_made_in_inference_mode_is_used_outside(monkeypatch):
    monkeypatch.setattr(launch, "_plans", type(launch._plans)())
    state, values = bank(1), [torch.randn(10), torch.randn(10)]
    with torch.inference_mode():
        launch._locate([(values[0], 0)], torch.float32, state.partials)
    _, pointers = launch._locate([(values[1], 0)], torch.float32, state.partials)
    assert pointers.tolist() == [[values[1].data_ptr(), 0]]


def test_capture_meets_only_sizes_it_knows_and_fills_a_table_of_its_own(monkeypatch):
    monkeypatch.setattr(launch, "_plans", type(launch._plans)())
    state, values = bank(1), torch.randn(10)
    group = [(values, 0)]
    monkeypatch.setattr(launch, "_is_capturing", lambda tensor: True)
    with pytest.raises(RuntimeError, match="call it once with the same tensors before capturing"):
        launch._locate(group, torch.float32, state.partials)
    monkeypatch.setattr(launch, "_is_capturing", lambda tensor: False)
    plan, pointers = launch._locate(group, torch.float32, state.partials)
    monkeypatch.setattr(launch, "_is_capturing", lambda tensor: True)
    captured_plan, captured = launch._locate(group, torch.float32, state.partials)
    assert captured_plan is plan
    assert plan.is_captured
    assert captured.data_ptr() != pointers.data_ptr()
    assert captured.tolist() == pointers.tolist() == [[values.data_ptr(), 0]]
    monkeypatch.setattr(launch, "_MOST_PLANS", 0)
    launch._forget_old_plans()
    assert list(launch._plans.values()) == [plan], "a captured graph still reads its table"


def test_off_the_cadence_nothing_happens():
    state = bank(1)
    step = torch.tensor([0])
    before = state.counts.clone()
    for now in range(7):
        step.fill_(now)
        launch.launch(torch.ones(3), (*buffers(state), step), 0, 3, EXPONENTIAL_BINNING)
        launch.launch_many([torch.ones(3)], (*buffers(state), step), [0], 3, EXPONENTIAL_BINNING)
        if now == 0:
            assert not torch.equal(before, state.counts)
    assert state.counts[0, [CALLS, LAST_STEP]].tolist() == [6, 6]
    assert state.counts[0, HEADER:].sum() == 18


def test_segments_cover_every_tile_once():
    sizes = [0, 7, 8192 * 50, 8192 * 3 + 1]
    table = launch._segments(sizes, torch.float32, most=8)
    for tensor, numel in enumerate(sizes):
        own = sorted((entry for entry in table if entry[0] == tensor), key=lambda entry: entry[4])
        assert {entry[1] for entry in own} == {numel}
        assert [entry[4] for entry in own] == list(range(len(own)))
        assert {entry[5] for entry in own} == {len(own)}
        assert len(own) <= 8
        assert own[0][2] == 0
        assert own[-1][3] == launch._tiles(numel, torch.float32)
        assert all(left[3] == right[2] for left, right in itertools.pairwise(own))


def test_sums_do_not_depend_on_which_program_is_last(monkeypatch):
    values = torch.randn(40000, generator=torch.Generator().manual_seed(5)) * 1e3
    results = set()
    set_program = interpreter_builder.set_grid_idx
    for order in itertools.permutations(range(4)):
        monkeypatch.setattr(interpreter_builder, "set_grid_idx", lambda x, y, z, o=order: set_program(o[x], y, z))
        state = bank(1, programs=4)
        launch.launch(values, (*buffers(state), torch.tensor([1])), 0, 1, EXPONENTIAL_BINNING)
        results.add(state.moments.numpy().tobytes() + state.counts.numpy().tobytes())
    assert len(results) == 1


def test_float64_sums_are_float64_throughout():
    values = torch.randn(9000, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    state = bank(1)
    launch.launch(values, (*buffers(state), torch.tensor([1])), 0, 1, EXPONENTIAL_BINNING)
    assert state.moments[0, 0].item() == pytest.approx(math.fsum(values.tolist()), rel=1e-12)
    assert state.moments[0, 1].item() == pytest.approx(math.fsum((values**2).tolist()), rel=1e-14)


@settings(max_examples=30)
@given(mean=st.floats(1e-3, 1e3), ratio=st.floats(1e-5, 1), seed=st.integers(0, 99), numel=st.integers(2, 30_000))
@example(mean=1.0, ratio=1e-4, seed=0, numel=30_000)
def test_the_spread_of_values_far_from_zero(mean, ratio, seed, numel):
    noise = torch.randn(numel, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    values = (mean * (1 + ratio * noise)).float()
    check(values, EXPONENTIAL_BINNING)
    expected = values.double().std(correction=0).item()
    assert std(values) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("numel", [100, 9000, 40_000])
def test_the_sum_does_not_hang_on_the_first_value(numel):
    # The others would lose all their digits in the distance to it.
    values = torch.full((numel,), 0.01)
    values[0] = 1e6
    state = bank(1, programs=1)
    launch.launch(values, (*buffers(state), torch.tensor([1])), 0, 1, EXPONENTIAL_BINNING)
    assert state.moments[0, Moment.SUM].item() == pytest.approx(values.double().sum().item(), rel=1e-12)


def std(values):
    state = bank(1)
    launch.launch(values, (*buffers(state), torch.tensor([1])), 0, 1, EXPONENTIAL_BINNING)
    mean = state.moments[0, Moment.SUM] / values.numel()
    return max(state.moments[0, Moment.SUM_SQUARES] / values.numel() - mean * mean, torch.tensor(0.0)).sqrt().item()
