"""Each private part of torch that the tracker leans on, alone: what fails here names what torch has changed."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from d9d_tracker import TrackerError, lazy_torch, tracing

FOUND: list[object] = []


@torch.compiler.assume_constant_result
def look(what):
    FOUND.append(getattr(tracing, what)())
    return 0


@pytest.fixture
def found():
    FOUND.clear()
    return FOUND


def run(function, *arguments):
    return torch.compile(function, fullgraph=True, backend="aot_eager")(*arguments)


def test_compilation(found):
    def function(inputs):
        return inputs * 2 + look("compilation")

    run(function, torch.ones(2))
    run(lambda inputs: inputs * 3 + look("compilation"), torch.ones(2))
    assert len(set(found)) == 2
    assert all(isinstance(name, str) for name in found)
    assert tracing.compilation() is None


def test_user_line(found):
    run(lambda inputs: inputs * 2 + look("user_line"), torch.ones(2))
    assert found[0].rpartition(":")[0] == __file__
    assert tracing.user_line() is None


def test_is_in_region(found):
    @torch.compiler.nested_compile_region
    def region(inputs):
        return inputs * 2 + look("is_in_region")

    run(lambda inputs: region(inputs) + look("is_in_region"), torch.ones(2))
    assert found == [True, False]


def test_inputs_of_regions():
    buffer, checked = torch.zeros(2), []

    def check(module):
        checked.append(list(tracing.inputs_of_regions(module, 2)))

    @torch.compiler.assume_constant_result
    def register():
        tracing.check_when_traced(check)
        tracing.check_when_traced(check)
        return 0

    @torch.compiler.nested_compile_region
    def region(inputs):
        return inputs * buffer

    def once(inputs):
        return region(inputs) + register()

    run(once, torch.ones(2))
    assert checked == [[]]
    run(lambda inputs: region(region(inputs)) + register(), torch.ones(2))
    assert len(checked) == 2
    ((*inputs,),) = checked[1]
    assert any(tensor is buffer for tensor in inputs)


def test_what_a_check_raises_ends_the_compilation():
    def check(module):
        raise TrackerError("refused")

    @torch.compiler.assume_constant_result
    def register():
        tracing.check_when_traced(check)
        return 0

    with pytest.raises(TrackerError, match="refused"):
        run(lambda inputs: inputs * 2 + register(), torch.ones(2))


class Scaled:
    def scale(self, inputs, factor=2):
        return inputs * factor * FACTOR


FACTOR = 3


def test_forget_own_guards(monkeypatch):
    """What others than this package read is guarded as ever; what it reads itself: see test_traced_scalars.py."""
    found = []
    for forget in (str, tracing.forget_own_guards):

        def function(inputs, scaled, forget=forget):
            forget("kind")
            return scaled.scale(inputs)

        call, scaled = torch.compile(function, fullgraph=True, backend="eager"), Scaled()
        with monkeypatch.context() as changes:
            found.append([call(torch.ones(()), scaled).item()])
            changes.setitem(globals(), "FACTOR", 5)
            found[-1].append(call(torch.ones(()), scaled).item())
            changes.setattr(Scaled.scale, "__defaults__", (4,))
            found[-1].append(call(torch.ones(()), scaled).item())
    assert found[0] == found[1]
    assert found[0][:2] == [6, 10]  # torch 2.11 does not guard defaults


def test_guards_stay_where_another_torch_has_not_what_takes_them_away(monkeypatch, graphs):
    def refuse(guards):
        raise KeyError("as of a torch to come")

    def function(inputs):
        tracing.forget_own_guards("kind")
        return inputs * FACTOR

    monkeypatch.setattr(tracing, "OrderedSet", refuse)
    assert [run(function, torch.ones(())) for _ in range(2)] == [3, 3]
    monkeypatch.setitem(globals(), "FACTOR", 5)
    assert run(function, torch.ones(())) == 5
    assert graphs() == 2


def test_for_real():
    buffer = torch.zeros(1)

    def loss(values):
        with tracing.for_real():
            buffer.fill_(3.0)
        return values.sum()

    torch.func.grad(loss)(torch.ones(2))
    assert buffer.item() == 3.0


def test_forget_compiled_code(graphs):
    call = torch.compile(lambda inputs: inputs * 2, backend="eager")
    call(torch.ones(2))
    tracing.forget_compiled_code()
    call(torch.ones(2))
    assert graphs() == 2


def test_an_error_leaves_a_trace_as_itself():
    @torch.compiler.assume_constant_result
    def refuse():
        raise TrackerError("refused")

    with pytest.raises(TrackerError):
        run(lambda inputs: inputs * 2 + refuse(), torch.ones(2))


def test_what_stands_for_functions_that_import_dynamo_does_as_they_do():
    ours, theirs = (lambda: 0), (lambda: 0)
    lazy_torch.assume_constant_result(ours)
    torch.compiler.assume_constant_result(theirs)
    assert vars(ours) == vars(theirs) != {}
    ours, theirs = torch.zeros(1), torch.zeros(1)
    tracing.mark_static(ours)
    torch._dynamo.mark_static_address(theirs, guard=False)
    assert vars(ours) == vars(theirs) != {}


def test_inputs(graphs):
    def function(inputs, number):
        tracing.begin_inputs()
        isinstance(number, float)
        tracing.end_inputs()
        return inputs * number

    call = torch.compile(function, fullgraph=True, backend="eager")
    for number in (2.0, 3.0, 4.0):
        assert call(torch.ones(2), number).tolist() == [number, number]
    assert graphs() == 1
    assert torch._dynamo.config.assume_static_by_default


@pytest.mark.parametrize("dynamic", [False, True])
def test_is_beyond_int64(dynamic):
    def function(inputs, number):
        return inputs + tracing.is_beyond_int64(number), tracing.is_beyond_int64(inputs.sum().item())

    call = torch.compile(function, fullgraph=True, backend="eager", dynamic=dynamic)
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        for number in (2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 7):
            assert call(torch.zeros((), dtype=torch.int64), number) == (not -(2**63) <= number < 2**63, False)


def test_is_backward_traced(found):
    def function(inputs):
        doubled = inputs * 2
        doubled.register_hook(lambda gradient: gradient + look("is_backward_traced"))
        return doubled.sum() + look("is_backward_traced")

    run(function, torch.ones(2, requires_grad=True)).backward()
    assert sorted(found) == [False, True]


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation(found, reentrant):
    def function(inputs):
        found.append((tracing.is_checkpointed(), tracing.is_recomputed()))
        return inputs * inputs

    checkpoint(function, torch.ones(2, requires_grad=True), use_reentrant=reentrant).sum().backward()
    assert found == [(True, False), (True, True)]
    assert not tracing.is_in_backward()


def test_transforms(found):
    def function(values):
        found.append((tracing.is_transformed(), tracing.is_vmapped()))
        return values.sum()

    function(torch.ones(2))
    torch.func.grad(function)(torch.ones(2))
    torch.vmap(function)(torch.ones(2, 2))
    assert found == [(False, False), (True, False), (True, True)]


def test_is_producing_a_program(found):
    def function(inputs):
        found.append(tracing.is_producing_a_program())
        return inputs * 2

    class Module(torch.nn.Module):
        def forward(self, inputs):
            return inputs * 2 + look("is_producing_a_program")

    function(torch.ones(2))
    torch.jit.trace(function, torch.ones(2), check_trace=False)
    for strict in (False, True):
        torch.export.export(Module(), (torch.ones(2),), strict=strict)
    run(lambda inputs: inputs * 3 + look("is_producing_a_program"), torch.ones(2))
    assert found == [False, True, True, True, False]
    assert not tracing.is_producing_a_program()


def test_mark_static():
    from torch._dynamo.testing import CompileCounter

    counter, tensors = CompileCounter(), [torch.zeros(1), torch.zeros(1)]
    for tensor in tensors:
        tracing.mark_static(tensor)
    call = torch.compile(lambda inputs, tensor: inputs + tensor, backend=counter)
    for tensor in tensors:
        call(torch.ones(1), tensor)
    assert counter.frame_count == 1


def test_an_operator_with_an_effect_is_kept_and_in_order():
    library, calls = torch.library.Library("d9d_tracker_test", "DEF"), []
    library.define("note(Tensor values, int number) -> ()")
    library.impl("note", lambda values, number: calls.append(number), "CPU")
    library.impl("note", lambda values, number: None, "Meta")
    tracing.register_effect("d9d_tracker_test::note")

    def function(inputs):
        for number in (3, 1, 2, 1):
            torch.ops.d9d_tracker_test.note(inputs, number)
        return inputs * 2

    torch.compile(function, fullgraph=True)(torch.ones(2))
    assert calls == [3, 1, 2, 1]


def test_a_constant_is_guarded(graphs):
    from d9d_tracker.compiled.slots import integer_binning  # where they are allowed

    @torch.compiler.assume_constant_result
    def bins(binning):
        return binning.bins

    call = torch.compile(lambda inputs, binning: inputs * bins(binning), fullgraph=True, backend="eager")
    two, three = (integer_binning("counts", (), bins) for bins in (2, 3))
    for binning in (two, two, three):
        assert call(torch.ones(1), binning).item() == binning.bins
    assert graphs() == 2
