"""The histogram operators on a GPU against the reference on the CPU.

    PYTHONPATH=.:kernels python3 -m pytest tests/gpu

Needs torch, triton, numpy and pytest only.
"""

import math

import pytest
import torch
from histogram_checks import adversarial_values, assert_same_histograms

from d9d_tracker_kernels import reference
from d9d_tracker_kernels.bank import allocate
from d9d_tracker_kernels.binning import CALLS, EXPONENTIAL, HEADER, INTEGER, LINEAR, cell_edges
from d9d_tracker_kernels.ops import SUPPORTED_DTYPES, add_counts_, histogram_, histogram_many_

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

BINNINGS = {
    "512 exponential": (EXPONENTIAL, 512, 0.0, 0.0),
    "2048 exponential": (EXPONENTIAL, 2048, 0.0, 0.0),
    "dyadic": (LINEAR, 64, -4.0, 4.0),
    "uneven": (LINEAR, 700, -1.3, 2.1),
    "most linear": (LINEAR, 2046, -3.0, 3.0),
    "integer": (INTEGER, 64, 0.0, 0.0),
}
EXPONENTIAL_BINNING = BINNINGS["2048 exponential"]
DTYPES = sorted(SUPPORTED_DTYPES, key=str)


@pytest.fixture(params=["portable", "inline PTX"], autouse=True)
def counting(request, monkeypatch):
    """Runs each test with both ways of counting, whichever is the faster with this Triton."""
    from d9d_tracker_kernels import launch

    if request.param == "inline PTX" and torch.version.hip:
        pytest.skip("inline PTX is for NVIDIA GPUs")
    monkeypatch.setattr(launch, "INLINE_PTX", request.param == "inline PTX")
    launch.variant.cache_clear()
    yield
    launch.variant.cache_clear()


def buffers(state):
    return state.counts, state.moments, state.partials, state.places


def check(values, binning):
    """Counts `values`, which lie on the GPU, and compares with the reference on the CPU."""
    state, expected = allocate(2, values.device), allocate(2, "cpu")
    step = torch.tensor([6], device=values.device)
    histogram_(values, *buffers(state), step, 1, 3, *binning)
    reference.histogram_(values.cpu(), expected.counts, expected.moments, 6, 1, *binning)
    assert_same_histograms(state, expected)
    assert not state.partials[:, 0].any(), "the ticket must be left at zero"


@pytest.mark.parametrize("binning", BINNINGS.values(), ids=BINNINGS.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adversarial_values(dtype, binning):
    for values in adversarial_values(dtype).values():
        check(values.cuda(), binning)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8], ids=str)
def test_sizes_and_alignments(dtype):
    storage = (torch.randn(3_000_064, device="cuda") * 40).to(dtype)
    for numel in (0, 1, 15, 17, 8191, 8192, 8193, 100_003, 3_000_017):
        for offset in (0, 1, 3, 16 // dtype.itemsize - 1):
            check(storage[offset : offset + numel], EXPONENTIAL_BINNING)


def test_non_finite_values_deep_in_a_large_tensor():
    values = torch.randn(20_000_003, device="cuda")
    values[[7, 1_000_000, 19_999_999]] = torch.tensor([math.nan, math.inf, -math.inf], device="cuda")
    for binning in BINNINGS.values():
        check(values, binning)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("low", "high", "bins"), [(0, 1, 10), (-1.3, 2.1, 2046), (1000, 1001, 64), (-3e-5, 1e-5, 300)])
def test_every_linear_edge_separates_its_neighbours(dtype, low, high, bins):
    edges = torch.from_numpy(cell_edges(LINEAR, bins, low, high)).to(dtype)
    infinity = torch.tensor(math.inf, dtype=dtype)
    values = torch.cat([edges, edges.nextafter(infinity), edges.nextafter(-infinity)])
    check(values.cuda(), (LINEAR, bins, low, high))


def test_any_strides():
    values = torch.randn(120, 200, device="cuda")
    for view in (values.t(), values[:, ::3], values[0, 0], values[:1, :1].expand(30, 50)):
        check(view, EXPONENTIAL_BINNING)


def test_many_tensors_of_several_dtypes():
    sizes = [0, 1, 5, 8191, 8193, 40_000, 3, 20_000, 3_000_000, 700]
    values = [torch.randn(size + 2, device="cuda")[size % 3 :][:size] for size in sizes]
    values[3][::7] = math.nan
    values += [torch.randn(100, 90, device="cuda").bfloat16().t(), torch.ones(3, dtype=torch.bool, device="cuda")]
    rows = list(reversed(range(len(values))))
    for binning in BINNINGS.values():
        state, expected = allocate(len(values), "cuda"), allocate(len(values), "cpu")
        for now in (4, 5):
            histogram_many_(values, *buffers(state), torch.tensor([now], device="cuda"), rows, 1, *binning)
            for tensor, row in zip(values, rows, strict=True):
                reference.histogram_(tensor.cpu(), expected.counts, expected.moments, now, row, *binning)
        assert_same_histograms(state, expected)


def test_results_are_equal_bit_for_bit_from_run_to_run():
    values = torch.randn(50_000_003, device="cuda") * 1e3
    results = set()
    for _ in range(20):
        state = allocate(1, "cuda")
        histogram_(values, *buffers(state), torch.tensor([0], device="cuda"), 0, 1, *EXPONENTIAL_BINNING)
        results.add(state.counts.cpu().numpy().tobytes() + state.moments.cpu().numpy().tobytes())
    assert len(results) == 1


def test_one_variant_whatever_the_shape_and_alignment():
    from d9d_tracker_kernels import histogram

    def variants():
        return sum(len(cache[0]) for cache in histogram.count_one.device_caches.values())

    storage, state = torch.randn(200_000, device="cuda"), allocate(17, "cuda")
    before = variants()
    for row, numel in enumerate((1, 2, 15, 16, 17, 1000, 4096, 99_999)):
        for offset in (0, 1, 2, 4):
            step = torch.tensor([row * 16], device="cuda")
            args = (storage[offset : offset + numel], *buffers(state), step, row, 1 + offset, *EXPONENTIAL_BINNING)
            histogram_(*args)
    assert variants() - before <= 1


def test_there_is_no_wait_for_the_gpu():
    values, state, step = torch.randn(1000, device="cuda"), allocate(2, "cuda"), torch.tensor([0], device="cuda")
    args = (*buffers(state), step)
    moved = values.clone()
    torch.cuda.set_sync_debug_mode("error")
    try:
        histogram_(values, *args, 0, 1, *EXPONENTIAL_BINNING)
        histogram_many_([moved], *args, [1], 1, *EXPONENTIAL_BINNING)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_replay_counts_where_the_table_says_now():
    values, state = torch.randn(3000, device="cuda"), allocate(4, "cuda")
    step, places = torch.zeros(1, dtype=torch.int64).cuda(), torch.tensor([0, 1]).cuda()
    bank = (state.counts, state.moments, state.partials, places)

    def train():
        histogram_(values, *bank, step, 0, 1, *EXPONENTIAL_BINNING)
        histogram_many_([values[:1000]], *bank, step, [1], 1, *EXPONENTIAL_BINNING)
        add_counts_(torch.ones(5, dtype=torch.int64, device="cuda"), *bank[:2], places, step, 1, 1)

    train()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        train()
    torch.cuda.synchronize()
    state.reset_()
    for meaning in ([2, 3], [-1, 2], [3, -1]):
        places.copy_(torch.tensor(meaning))
        graph.replay()
    assert state.counts[:, HEADER:].sum(1).tolist() == [0, 0, 3000 + 1005, 1005 + 3000]


def test_cuda_graphs_replay_with_the_cadence():
    values, state, step = (
        torch.randn(3000, device="cuda"),
        allocate(3, "cuda"),
        torch.zeros(1, dtype=torch.int64).cuda(),
    )
    several = [values[:1000], values[1000:]]

    def train():
        histogram_(values, *buffers(state), step, 0, 2, *EXPONENTIAL_BINNING)
        histogram_many_([tensor * 2 for tensor in several], *buffers(state), step, [1, 2], 2, *EXPONENTIAL_BINNING)

    train()
    torch.cuda.synchronize()
    state.reset_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        train()
    for now in range(6):
        step.fill_(now)
        graph.replay()
        # Eager calls between replays must not disturb the graph's table, nor the graph theirs.
        histogram_many_(several, *buffers(state), step, [1, 2], 2, *EXPONENTIAL_BINNING)
    assert state.counts[:, CALLS].tolist() == [3, 6, 6]
    assert state.counts[:, HEADER:].sum(1).tolist() == [9000, 6000, 12000]
    expected = allocate(3, "cpu")
    for tensor, row in (
        (values, 0),
        (values[:1000], 1),
        (values[:1000] * 2, 1),
        (values[1000:], 2),
        (values[1000:] * 2, 2),
    ):
        for _ in range(3):
            reference.histogram_(tensor.cpu(), expected.counts, expected.moments, 4, row, *EXPONENTIAL_BINNING)
    assert_same_histograms(state, expected)


def test_capture_of_unknown_sizes_names_the_next_move():
    state, step = allocate(1, "cuda"), torch.tensor([0], device="cuda")
    values = torch.randn(12_345, device="cuda")
    graph = torch.cuda.CUDAGraph()
    message = "call it once with the same tensors before capturing"
    with pytest.raises(RuntimeError, match=message), torch.cuda.graph(graph):
        histogram_many_([values], *buffers(state), step, [0], 1, *EXPONENTIAL_BINNING)


def test_compiled():
    state, step = allocate(3, "cuda"), torch.tensor([4], device="cuda")

    @torch.compile(fullgraph=True)
    def train(x):
        y = x * 2
        histogram_(y.detach(), *buffers(state), step, 0, 1, *EXPONENTIAL_BINNING)
        histogram_many_([y.detach(), x], *buffers(state), step, [1, 2], 1, *BINNINGS["dyadic"])
        return y

    x, expected = torch.randn(5000, device="cuda"), allocate(3, "cpu")
    train(x)
    for tensor, row, binning in (
        (x * 2, 0, EXPONENTIAL_BINNING),
        (x * 2, 1, BINNINGS["dyadic"]),
        (x, 2, BINNINGS["dyadic"]),
    ):
        reference.histogram_(tensor.cpu(), expected.counts, expected.moments, 4, row, *binning)
    assert_same_histograms(state, expected)


def test_another_device_is_refused():
    state, step = allocate(1, "cuda"), torch.tensor([0], device="cuda")
    with pytest.raises(ValueError, match="move one of them"):
        histogram_(torch.randn(3), *buffers(state), step, 0, 1, *EXPONENTIAL_BINNING)
