"""The operators: dispatch, cadence, refusals, and what the compiler makes of them."""

import contextlib
import math
import re

import pytest
import torch
from torch._inductor.utils import run_and_get_code
from torch._subclasses.fake_tensor import FakeTensorMode

from d9d_tracker_kernels import reference
from d9d_tracker_kernels.bank import allocate
from d9d_tracker_kernels.binning import CALLS, EXPONENTIAL, HEADER, INTEGER, LAST_STEP, LINEAR
from d9d_tracker_kernels.ops import add_counts_, check_values, histogram_, histogram_many_

EXPONENTIAL_BINNING = (EXPONENTIAL, 2048, 0.0, 0.0)
LINEAR_BINNING = (LINEAR, 64, -1.0, 1.0)


@pytest.fixture
def state():
    return allocate(4, "cpu")


@pytest.fixture
def step():
    return torch.tensor([6])


def buffers(state):
    return state.counts, state.moments, state.partials, state.places


def test_the_cpu_path_is_the_reference(state, step, monkeypatch):
    calls = []
    monkeypatch.setattr(reference, "histogram_", lambda *args: calls.append(args))
    values = torch.randn(10)
    histogram_(values, *buffers(state), step, 2, 1, *LINEAR_BINNING)
    ((received, counts, moments, *rest),) = calls
    assert received is values
    assert counts is state.counts
    assert moments is state.moments
    assert rest == [6, 2, *LINEAR_BINNING]


@pytest.mark.parametrize(("every", "calls"), [(1, 1), (2, 1), (3, 1), (4, 0), (7, 0)])
def test_off_the_cadence_nothing_happens(state, step, every, calls):
    before = state.counts.clone()
    histogram_(torch.ones(5), *buffers(state), step, 0, every, *EXPONENTIAL_BINNING)
    assert state.counts[0, CALLS] == calls
    assert torch.equal(before, state.counts) == (calls == 0)


def test_the_cadence_follows_the_step_tensor(state, step):
    for now in range(10):
        step.fill_(now)
        histogram_many_([torch.ones(5)], *buffers(state), step, [1], 4, *EXPONENTIAL_BINNING)
    assert state.counts[1, [CALLS, LAST_STEP]].tolist() == [3, 8]


def test_a_place_means_the_row_that_the_table_says_and_minus_one_none(state, step):
    places = torch.tensor([3, -1])
    bank = (state.counts, state.moments, state.partials, places)
    histogram_(torch.ones(5), *bank, step, 0, 1, *EXPONENTIAL_BINNING)
    histogram_(torch.ones(5), *bank, step, 1, 1, *EXPONENTIAL_BINNING)
    places.copy_(torch.tensor([-1, 2]))
    histogram_many_([torch.ones(5), torch.ones(7)], *bank, step, [0, 1], 1, *EXPONENTIAL_BINNING)
    add_counts_(torch.tensor([4]), state.counts, state.moments, places, step, 0, 1)
    assert state.counts[:, HEADER:].sum(1).tolist() == [0, 0, 7, 5]
    assert state.counts[:, CALLS].tolist() == [0, 0, 1, 1]


def test_many_equals_one_by_one(state, step):
    values = [torch.randn(7, 3), torch.zeros(0), torch.randn(11, dtype=torch.float64), torch.randn(4).bfloat16()]
    histogram_many_(values, *buffers(state), step, [2, 0, 3, 1], 1, *LINEAR_BINNING)
    expected = allocate(4, "cpu")
    for tensor, row in zip(values, [2, 0, 3, 1], strict=True):
        histogram_(tensor, *buffers(expected), step, row, 1, *LINEAR_BINNING)
    assert torch.equal(state.counts, expected.counts)
    assert torch.equal(state.moments, expected.moments)
    assert state.counts[:, CALLS].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: x.to(torch.complex64), r"complex64: pass abs\(\)"),
        (lambda x: torch.quantize_per_tensor(x, 1.0, 0, torch.qint8), r"qint8: pass dequantize\(\)"),
        (lambda x: x.to_sparse(), r"torch.sparse_coo: pass its coalesce\(\)\.values\(\)"),
        (lambda x: x[None].to_sparse_csr(), r"torch.sparse_csr: pass its values\(\)"),
        (lambda x: torch.nested.nested_tensor([x, x]), r"a nested tensor: pass its values\(\)"),
        (lambda x: x.to(torch.float8_e4m3fn), "float8_e4m3fn: convert it"),
        (lambda x: x.to(torch.uint16), "uint16: convert it"),
    ],
    ids=["complex", "quantized", "sparse", "CSR", "nested", "float8", "uint16"],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:.*(beta|prototype):UserWarning")
def test_what_cannot_be_counted_is_refused(make, message):
    with pytest.raises(TypeError, match=message):
        check_values(make(torch.zeros(2)), torch.device("cpu"))


def test_another_device_is_refused(state, step):
    message = "values are on meta but the histograms are on cpu: move one of them"
    with pytest.raises(ValueError, match=message):
        check_values(torch.zeros(2, device="meta"), torch.device("cpu"))
    with pytest.raises(ValueError, match=message):
        histogram_(torch.zeros(2, device="meta"), *buffers(state), step, 0, 1, *LINEAR_BINNING)


def test_the_operator_itself_refuses_too(state, step):
    with pytest.raises(TypeError, match="complex64"):
        histogram_(torch.zeros(2, dtype=torch.complex64), *buffers(state), step, 0, 1, *LINEAR_BINNING)
    with pytest.raises(ValueError, match="2 tensors for 1 places"):
        histogram_many_([torch.zeros(2)] * 2, *buffers(state), step, [0], 1, *LINEAR_BINNING)
    with pytest.raises(ValueError, match="a place is named twice"):
        histogram_many_([torch.zeros(2)] * 2, *buffers(state), step, [1, 1], 1, *LINEAR_BINNING)
    with pytest.raises(ValueError, match="move one of them"):
        histogram_many_(
            [torch.zeros(2), torch.zeros(2, device="meta")], *buffers(state), step, [0, 1], 1, *LINEAR_BINNING
        )
    assert not state.counts.any()


@pytest.mark.parametrize(
    ("row", "every", "binning", "message"),
    [
        (4, 1, EXPONENTIAL_BINNING, r"at=\[4.*: there are places 0 to 3"),
        (-1, 1, EXPONENTIAL_BINNING, r"at=\[-1"),
        (0, 0, EXPONENTIAL_BINNING, "every=0: pass 1 or more"),
        (0, 1, (7, 2048, 0.0, 0.0), "unknown kind of binning 7"),
        (0, 1, (EXPONENTIAL, 4096, 0.0, 0.0), "512, 1024 or 2048 bins, not 4096"),
        (0, 1, (LINEAR, 4000, 0.0, 1.0), "bins=4000"),
        (0, 1, (LINEAR, 8, math.nan, 1.0), "must be finite"),
        (0, 1, (LINEAR, 8, 1.0, 0.0), "swap them"),
        (0, 1, (INTEGER, 0, 0.0, 0.0), "bins=0"),
    ],
)
@pytest.mark.parametrize("is_fake", [False, True])
def test_what_makes_no_sense_is_refused(is_fake, row, every, binning, message):
    with FakeTensorMode() if is_fake else contextlib.nullcontext():
        state, step = allocate(4, "cpu"), torch.zeros(1, dtype=torch.int64)
        with pytest.raises(ValueError, match=message):
            histogram_(torch.ones(2), *buffers(state), step, row, every, *binning)
        with pytest.raises(ValueError, match=message):
            histogram_many_([torch.ones(2), torch.ones(2)], *buffers(state), step, [row, 1], every, *binning)
    if not is_fake:
        assert not state.counts.any()


def test_compiled_it_works_on_the_bank_itself(state, step):
    def train(x):
        y = x * 2
        for row in range(2):
            histogram_((y + row).detach(), *buffers(state), step, row, 1, *EXPONENTIAL_BINNING)
        histogram_many_([y.detach(), x.detach()], *buffers(state), step, [2, 3], 1, *LINEAR_BINNING)
        return y

    x = torch.randn(100)
    _, (code,) = run_and_get_code(torch.compile(train, fullgraph=True), x)
    body = code[code.index("def call(") : code.index("def get_args")]
    assert len(re.findall(r"torch\.ops\.d9d_tracker\.histogram_\.default\(", body)) == 2
    assert len(re.findall(r"torch\.ops\.d9d_tracker\.histogram_many_\.default\(", body)) == 1
    # Only the values are allocated, [100] each: no copy of the counts [4, 2056] or moments [4, 4].
    assert set(re.findall(r"empty_strided_cpu\((\([^)]*\))", body)) == {"(100, )"}
    assert not re.search(r"clone|copy_|reinterpret_tensor", body)
    assert state.counts[:, CALLS].tolist() == [1, 1, 1, 1]
    expected = allocate(4, "cpu")
    train_eagerly = [x * 2, x * 2 + 1]
    for row, values in enumerate(train_eagerly):
        histogram_(values, *buffers(expected), step, row, 1, *EXPONENTIAL_BINNING)
    assert torch.equal(state.counts[:2], expected.counts[:2])


def test_compiled_it_does_not_recompile_when_the_step_changes(state, step):
    def train(x):
        histogram_(x, *buffers(state), step, 0, 2, *EXPONENTIAL_BINNING)
        return x + 1

    compiled = torch.compile(train, fullgraph=True)
    compiled(torch.randn(10))
    with torch.compiler.set_stance("fail_on_recompile"):
        for now in range(4):
            step.fill_(now)
            compiled(torch.randn(10))
    assert state.counts[0, CALLS] == 3


def test_exported_it_stays_one_call(state, step):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, buffer in zip(("counts", "moments", "partials", "places"), buffers(state), strict=True):
                self.register_buffer(name, buffer)
            self.register_buffer("step", step)

        def forward(self, x):
            y = x * 2
            bank = (self.counts, self.moments, self.partials, self.places)
            histogram_(y, *bank, self.step, 1, 1, *EXPONENTIAL_BINNING)
            return y

    program = torch.export.export(Model(), (torch.ones(6),))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count(histogram_) == 1
    exported = program.module()
    exported(torch.ones(6))
    assert exported.counts[1, HEADER:].sum() == 6


def test_fakes_take_more_than_two_to_the_31_elements():
    with FakeTensorMode():
        state = allocate(2, "cpu")
        huge = torch.empty(3, 2**31, dtype=torch.bfloat16)
        step = torch.zeros(1, dtype=torch.int64)
        histogram_(huge, *buffers(state), step, 0, 1, *EXPONENTIAL_BINNING)
        histogram_many_([huge, huge.t()], *buffers(state), step, [0, 1], 1, *LINEAR_BINNING)
        with pytest.raises(TypeError, match="complex64"):
            histogram_(huge.to(torch.complex64), *buffers(state), step, 0, 1, *LINEAR_BINNING)


def test_the_operators_pass_torchs_own_checks(state, step):
    args = (torch.randn(9), *buffers(state), step, 0, 1, *LINEAR_BINNING)
    torch.library.opcheck(histogram_, args)
    torch.library.opcheck(histogram_many_, ([args[0]], *args[1:6], [0], *args[7:]))
