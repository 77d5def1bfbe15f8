"""The code that a GPU would run for a compiled step leaves in the bank what eager code leaves there."""

import re
from importlib.metadata import version

import pytest
import torch

from d9d_tracker import AccumulatorConfig
from d9d_tracker.accumulator.run import AccumulatingRun
from d9d_tracker.bank.buffers import Buffers

pytestmark = pytest.mark.skipif(
    tuple(map(int, version("triton").split(".")[:2])) < (3, 9), reason="the executor knows the code of Triton 3.9"
)


def make_run(device):
    config = AccumulatorConfig(device=device, max_scalars=128, max_histograms=1)
    run = AccumulatingRun(Buffers(config), config)
    run.is_open = True
    return run


def by_mapping(run, values):
    run.scalars({f"v/{index}": value for index, value in enumerate(values.unbind())})
    return values * 2


def every_reduction(run, values):
    for index, value in enumerate(values.unbind()):
        reduce = ("mean", "sum", "min", "max", "last")[index % 5]
        run.scalar(f"v/{index}", value, reduce=reduce, weight=values[0].abs() if reduce == "mean" else None)
    return values + 1


def tensors_of(thing, found, seen):
    """Collect the tensors that hang on an object."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        found.setdefault((thing.dtype, tuple(thing.shape)), []).append(thing)
    elif isinstance(thing, dict | list | tuple):
        for part in thing.values() if isinstance(thing, dict) else thing:
            tensors_of(part, found, seen)
    elif type(thing).__module__.startswith("d9d_tracker"):
        slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
        for part in [*getattr(thing, "__dict__", {}).values(), *(getattr(thing, name, None) for name in slots)]:
            tensors_of(part, found, seen)


def banks(fake_cuda, folder, function, count, change=lambda source: source):
    """Return the bank after the GPU's code, that after eager code, and the empty one."""
    from inductor_ptx import execute

    source = fake_cuda.module(
        lambda run, values: function(run, values), lambda: (make_run("cuda:0"), torch.empty(count, device="cuda:0"))
    )
    values = torch.randn(count, generator=torch.Generator().manual_seed(count))
    values[-1:] = float("nan") if count > 1 else values[-1:]
    eager, compiled = make_run("cpu"), make_run("cpu")
    scalars = compiled.buffers.scalars
    bank = scalars.current = scalars.current.contiguous()  # as it lies on a GPU
    empty = bank.clone()
    function(eager, values)
    torch.compile(function, fullgraph=True, backend="eager")(compiled, values)  # hands out the same places
    bank.copy_(empty)
    found = {}
    tensors_of((values, compiled.buffers), found, set())
    arguments = []
    for shape, dtype in re.findall(r"rand_strided\((\([^)]*\)), .*?dtype=(torch\.\w+)\)", source):
        key = (getattr(torch, dtype.removeprefix("torch.")), eval(shape))
        candidates = [bank] if any(one is bank for one in found[key]) else found[key]
        assert len({one.data_ptr() for one in candidates}) == 1, f"{key} is one of several"
        arguments.append(candidates[0])
    assert execute(change(source), arguments, folder).kernels
    names = [f"v/{index}" for index in range(count)]
    assert [series.name for series in compiled.buffers.scalar_series.series][:count] == names
    return bank, eager.buffers.scalars.current, empty


@pytest.mark.parametrize(
    ("function", "count"),
    [
        *((function, count) for function in (by_mapping, every_reduction) for count in (1, 10)),
        (by_mapping, 100),
        pytest.param(every_reduction, 100, marks=pytest.mark.slow),
    ],
)
def test_the_bank_ends_as_in_eager_code(fake_cuda, tmp_path, function, count):
    bank, expected, _ = banks(fake_cuda, tmp_path, function, count)
    torch.testing.assert_close(bank, expected, rtol=0, atol=0, equal_nan=True)


FAULTS = {
    "a choice the wrong way round": (r"tl\.where\((\w+), (\w+), (\w+)\)(?!.*tl\.where)", r"tl.where(\1, \3, \2)"),
    "a part of the bank not written": (
        r"(tl\.store\(out_ptr1 \+ \(x0\), \w+), xmask\)",
        r"\1, xmask & (xindex > 200))",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_seen(fake_cuda, tmp_path, name):
    correct, planted = FAULTS[name]

    def change(source):
        changed, times = re.subn(correct, planted, source, flags=re.DOTALL)
        assert times == 1
        return changed

    bank, expected, _ = banks(fake_cuda, tmp_path, by_mapping, 10, change)
    assert not torch.allclose(bank, expected, rtol=0, atol=0, equal_nan=True)
