"""The reference against plain Python: exact comparisons with the reported edges, one value at a time."""

import bisect
import functools
import math
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import torch
from histogram_checks import adversarial_values
from hypothesis import example, given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from d9d_tracker_kernels import reference
from d9d_tracker_kernels.bank import allocate
from d9d_tracker_kernels.binning import (
    CALLS,
    EXPONENTIAL,
    HEADER,
    INTEGER,
    LAST_STEP,
    LINEAR,
    NAN,
    NEGINF,
    POSINF,
    ZEROS,
    Moment,
    cell_edges,
    sorted_cells,
    validate,
)
from d9d_tracker_kernels.ops import SUPPORTED_DTYPES

BINNINGS = {
    "512 exponential": (EXPONENTIAL, 512, 0.0, 0.0),
    "2048 exponential": (EXPONENTIAL, 2048, 0.0, 0.0),
    "dyadic": (LINEAR, 64, -4.0, 4.0),
    "uneven": (LINEAR, 100, -1.3, 2.1),
    "most linear": (LINEAR, 2046, -3.0, 3.0),
    "integer": (INTEGER, 64, 0.0, 0.0),
}


def count(values, binning, step=7):
    state = allocate(1, "cpu")
    reference.histogram_(values, state.counts, state.moments, step, 0, *binning)
    return state


def expected_cells(numbers, binning):
    """How many numbers lie under, in each bin, and over. Python compares ints and floats exactly."""
    edges = cell_edges(*binning).tolist()
    counts = [0] * (len(edges) + 1)
    for number in numbers:
        if binning[0] == EXPONENTIAL:
            # Closed on the side of zero; beyond the outermost edges belongs to the outermost bins.
            place = bisect.bisect_right(edges, number) if number > 0 else bisect.bisect_left(edges, number)
            place = min(max(place, 1), len(edges) - 1)
        else:
            place = bisect.bisect_right(edges, number)
            if binning[0] == LINEAR and number == edges[-1]:
                place -= 1
        counts[place] += 1
    return counts


@functools.cache
def exact_sums(dtype):
    """Of the finite adversarial values: their sum, that of their magnitudes and that of their squares."""
    found = {}
    for name, values in adversarial_values(dtype).items():
        numbers = [Fraction(number + 0) for number in values.tolist() if math.isfinite(number)]
        found[name] = [float(sum(numbers)), float(sum(map(abs, numbers)))]
        if name != "outside float32":  # 1e300 squared leaves float64
            found[name].append(float(sum(number**2 for number in numbers)))
    return found


def reported_cells(state, binning):
    result = sorted_cells(state.counts[0, HEADER:].numpy(), *binning[:2])
    return [int(result.under), *result.cells.tolist(), int(result.over)]


@pytest.mark.parametrize("binning", BINNINGS.values(), ids=BINNINGS.keys())
@pytest.mark.parametrize("dtype", sorted(SUPPORTED_DTYPES, key=str), ids=str)
def test_counts_and_statistics_are_exact(dtype, binning):
    for name, values in adversarial_values(dtype).items():
        state = count(values, binning)
        numbers = [number + 0 for number in values.tolist()]  # plus 0 makes a number of a bool
        finite = [number for number in numbers if math.isfinite(number)]
        assert reported_cells(state, binning) == expected_cells(finite, binning), name
        header, moments = state.counts[0, :HEADER], state.moments[0]
        assert state.counts[0, HEADER:].sum() == len(finite)
        assert header[ZEROS] == sum(number == 0 for number in numbers)
        assert header[NAN] == sum(math.isnan(number) for number in numbers)
        assert header[POSINF] == numbers.count(math.inf)
        assert header[NEGINF] == numbers.count(-math.inf)
        # int64 beyond 2**53 is rounded to nearest.
        assert moments[Moment.MIN].item() == float(min(finite, default=math.inf))
        assert moments[Moment.MAX].item() == float(max(finite, default=-math.inf))
        total, magnitude, *squares = exact_sums(dtype)[name]
        assert abs(moments[Moment.SUM].item() - total) <= 1e-13 * magnitude, name
        if squares:
            assert moments[Moment.SUM_SQUARES].item() == pytest.approx(squares[0], rel=1e-13), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@given(
    low=st.floats(-1e4, 1e4, width=32),
    width=st.floats(2.0**-10, 1e4, width=32),
    bins=st.integers(1, 300),
)
@example(low=0.0, width=1.0, bins=10)
@example(low=1000.0, width=1.0, bins=64)
@example(low=-3.0, width=6.0, bins=64)
@example(low=1e7, width=64.0, bins=32)
@example(low=-1.5e38, width=3e38, bins=2)
@example(low=-3e-38, width=6e-38, bins=2)
def test_every_linear_edge_separates_its_neighbours(dtype, low, width, bins):
    high = float(np.float32(low + width))
    binning = (LINEAR, bins, low, high)
    try:
        validate(*binning)
    except ValueError:
        return
    edges = torch.from_numpy(cell_edges(*binning)).to(dtype)
    infinity = torch.tensor(math.inf, dtype=dtype)
    values = torch.cat([edges, edges.nextafter(infinity), edges.nextafter(-infinity)])
    values = values[values.isfinite()]  # not all of the edges are of float16
    assert reported_cells(count(values, binning), binning) == expected_cells(values.tolist(), binning)


@pytest.mark.parametrize("bins", [512, 1024, 2048])
def test_every_exponential_edge_separates_its_neighbours(bins):
    binning = (EXPONENTIAL, bins, 0.0, 0.0)
    edges = torch.from_numpy(cell_edges(*binning))
    infinity = torch.tensor(math.inf, dtype=torch.float64)
    values = torch.cat([edges, edges.nextafter(infinity), edges.nextafter(-infinity)])
    assert reported_cells(count(values, binning), binning) == expected_cells(values.tolist(), binning)


class LargestAllocation(TorchDispatchMode):
    """The most bytes that one operator allocates for its result."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = storages((args, kwargs))
        result = func(*args, **(kwargs or {}))
        for address, nbytes in storages(result).items():
            self.nbytes = max(self.nbytes, 0 if address in before else nbytes)
        return result


def storages(tree):
    tensors = [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


@pytest.mark.parametrize("binning", BINNINGS.values(), ids=BINNINGS.keys())
@pytest.mark.parametrize(
    "make",
    [
        lambda rows: torch.ones(rows, 4096),
        lambda rows: torch.ones(rows, 4096).t(),
        lambda rows: torch.ones(rows, 4097)[:, :-1],
        lambda rows: torch.ones(1, 4096).expand(rows, 4096),
        lambda rows: torch.ones(rows, 4096, dtype=torch.complex64).conj().imag,
        lambda rows: torch.full((rows, 4096), math.nan),
        lambda rows: torch.ones(rows, 4096, dtype=torch.bfloat16),
        lambda rows: torch.ones(rows, 4096, dtype=torch.float64),
        lambda rows: torch.ones(rows, 4096, dtype=torch.int64),
    ],
    ids=["contiguous", "transposed", "gaps", "expanded", "negated", "NaN", "bfloat16", "float64", "int64"],
)
def test_memory_is_bounded_by_the_chunk(make, binning):
    values = make(5 * reference.CHUNK // 4096)
    with LargestAllocation() as largest:
        state = count(values, binning)
    assert state.counts[0, CALLS] == 1
    assert largest.nbytes <= 8 * reference.CHUNK < values.numel() * values.itemsize


@pytest.mark.parametrize("binning", BINNINGS.values(), ids=BINNINGS.keys())
def test_edges_do_not_depend_on_ambient_modes(binning):
    expected = cell_edges(*binning)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float16)
        torch.set_flush_denormal(True)
        edges = cell_edges(*binning)
    finally:
        torch.set_default_dtype(default)
        torch.set_flush_denormal(False)
    assert np.array_equal(edges, expected)


def test_an_interruption_leaves_the_row_as_it_was(monkeypatch):
    state, step = allocate(1, "cpu"), 3
    binning = BINNINGS["dyadic"]
    reference.histogram_(torch.ones(10), state.counts, state.moments, step, 0, *binning)
    before = state.counts.clone(), state.moments.clone()
    cells = reference._linear_cell
    calls = iter([cells, cells])

    def interrupted(*args):
        for call in calls:
            return call(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(reference, "_linear_cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reference.histogram_(torch.ones(4 * reference.CHUNK), state.counts, state.moments, step, 0, *binning)
    assert torch.equal(state.counts, before[0])
    assert torch.equal(state.moments, before[1])


def test_many_chunks_add_up():
    values = torch.randn(3 * reference.CHUNK + 17, generator=torch.Generator().manual_seed(1))
    values[reference.CHUNK + 5] = math.nan
    state = count(values, BINNINGS["dyadic"])
    finite = values[values.isfinite()].double()
    assert reported_cells(state, BINNINGS["dyadic"])[1:-1] == torch.histc(finite, 64, -4, 4).tolist()
    assert state.moments[0, Moment.MAX] == finite.max()
    assert state.counts[0, NAN] == 1


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("numel", [0, 1, 65_535, 65_536, 98_305, 200_001])
def test_threads_share_the_work_and_lose_nothing(threads, numel):
    index = torch.randint(2048, (numel,), generator=torch.Generator().manual_seed(3))
    table, found = torch.arange(2048, dtype=torch.float64).flip(0), torch.empty(numel, dtype=torch.float64)
    with torch.profiler.profile() as profile:
        counted = reference._count(index)
        reference._look_up(table, index, out=found)
    assert torch.equal(counted, torch.bincount(index, minlength=2048))
    assert torch.equal(found, table[index])
    operators = {event.key for event in profile.key_averages()}
    is_shared = threads > 1 and numel >= 65_536
    assert {"aten::scatter_add_", "aten::gather"} & operators == (
        {"aten::scatter_add_", "aten::gather"} if is_shared else set()
    )


def test_cells_are_narrow_and_the_chunks_of_one_thread_stay_near(threads, monkeypatch):
    cells, count_cells = [], reference._count
    monkeypatch.setattr(reference, "_count", lambda cell: cells.append(cell) or count_cells(cell))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        values = torch.randn(reference.CHUNK, generator=torch.Generator().manual_seed(4)).to(dtype)
        for binning in BINNINGS.values():
            count(values, binning)
    assert {(cell.dtype, len(cell)) for cell in cells} == {(torch.int32, 1 << 16 if threads == 1 else 1 << 19)}


def test_calls_accumulate_and_an_empty_one_counts_as_a_call():
    state = allocate(2, "cpu")
    for step, values in ((3, torch.tensor([1.0, -2.0])), (4, torch.tensor([])), (5, torch.tensor([0.0]))):
        reference.histogram_(values, state.counts, state.moments, step, 1, *BINNINGS["dyadic"])
    assert state.counts[1, [CALLS, LAST_STEP, ZEROS]].tolist() == [3, 5, 1]
    assert state.moments[1].tolist() == [-1.0, 5.0, -2.0, 1.0]
    assert not state.counts[0].any()
    state.reset_()
    assert not state.counts.any()
    assert state.moments[1].tolist() == [0.0, 0.0, math.inf, -math.inf]


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t(),
        lambda x: x.reshape(6, 5, 40, 20).permute(2, 0, 3, 1),
        lambda x: x[:, ::3],
        lambda x: x[5:90, 7:],
        lambda x: x[:1, :1].expand(300, 500),
        lambda x: x.reshape(-1)[1:],
        lambda x: x[0, 0],
        lambda x: x.flip(0)[::2],
    ],
    ids=["transposed", "permuted", "strided", "sliced", "expanded", "misaligned", "scalar", "flipped"],
)
def test_any_strides(view, monkeypatch):
    monkeypatch.setattr(reference, "CHUNK", 1000)
    values = view(torch.randn(120, 200, generator=torch.Generator().manual_seed(2)))
    state, expected = (count(tensor, BINNINGS["2048 exponential"]) for tensor in (values, values.clone().reshape(-1)))
    assert torch.equal(state.counts, expected.counts)
    assert torch.allclose(state.moments, expected.moments, rtol=1e-12)


def test_a_dense_permutation_is_read_in_storage_order_without_a_copy():
    values = torch.randn(4, 5, 6).permute(2, 0, 1)
    flat = reference.in_storage_order(values)
    assert flat is not None
    assert flat.data_ptr() == values.data_ptr()
    (piece,) = reference._chunks(values)
    assert piece.data_ptr() == values.data_ptr()
    assert reference.in_storage_order(values[:, ::2]) is None


def test_no_piece_of_a_tensor_with_gaps_is_larger_than_a_chunk(monkeypatch):
    values = torch.randn(50, 60, 70)[:, ::2, 1:]
    monkeypatch.setattr(reference, "CHUNK", 1000)
    pieces = list(reference._chunks(values))
    assert sum(piece.numel() for piece in pieces) == values.numel()
    assert max(piece.numel() for piece in pieces) <= reference.CHUNK


def test_it_counts_on_the_cpu_under_any_ambient_mode():
    values, binning = torch.randn(100), BINNINGS["uneven"]
    expected = count(values, binning)
    with torch.device("meta"):
        state = count(values, binning)
    assert torch.equal(state.counts, expected.counts)
    with torch.inference_mode():
        count(values, binning)
    assert torch.equal(count(values, binning).counts, expected.counts)


def test_each_thread_has_scratch_memory_of_its_own():
    values = [torch.full((3 * reference.CHUNK,), float(number)) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        states = list(pool.map(lambda tensor: count(tensor, BINNINGS["uneven"]), values * 4))
    for state, tensor in zip(states, values * 4, strict=True):
        assert torch.equal(state.counts, count(tensor, BINNINGS["uneven"]).counts)


def test_memory_that_a_thread_first_used_in_inference_mode_is_used_outside_too():
    state = allocate(1, "cpu")

    def count():
        with torch.inference_mode():
            reference.histogram_(torch.ones(3), state.counts, state.moments, 0, 0, EXPONENTIAL, 2048, 0.0, 0.0)
        reference.histogram_(torch.ones(3), state.counts, state.moments, 0, 0, EXPONENTIAL, 2048, 0.0, 0.0)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(count).result()
    assert state.counts[0, HEADER:].sum() == 6


def test_a_count_within_a_count_changes_nothing(monkeypatch):
    """As when a signal's handler logs while its thread counts."""
    values, others = torch.rand(1000), torch.rand(1000) * 1e6
    alone, interrupted, inner = (allocate(1, torch.device("cpu")) for _ in range(3))
    parameters = (1, 0, *BINNINGS["512 exponential"])
    reference.histogram_(values, alone.counts, alone.moments, *parameters)
    count = reference._count

    def interrupt(cell):
        monkeypatch.setattr(reference, "_count", count)
        reference.histogram_(others, inner.counts, inner.moments, *parameters)
        return count(cell)

    monkeypatch.setattr(reference, "_count", interrupt)
    reference.histogram_(values, interrupted.counts, interrupted.moments, *parameters)
    assert torch.equal(interrupted.counts, alone.counts)
    assert inner.counts[0, HEADER:].sum() == 1000
