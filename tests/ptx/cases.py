"""Random launches of the compiled kernels, executed and held against the reference."""

import random
from dataclasses import dataclass, replace

import numpy as np
import program
import torch
from executor import launch
from histogram_checks import adversarial_values, assert_same_histograms
from memory import GlobalMemory

from bench.machine_code import PARTIALS_PLACES, compile_kernel
from d9d_tracker_kernels import launch as launching
from d9d_tracker_kernels import reference
from d9d_tracker_kernels.bank import HistogramState, allocate
from d9d_tracker_kernels.binning import EXPONENTIAL, INTEGER, LINEAR

BINNINGS = [
    (EXPONENTIAL, 2048, 0.0, 0.0),
    (EXPONENTIAL, 512, 0.0, 0.0),
    (LINEAR, 64, -3.0, 3.0),
    (LINEAR, 2046, -0.1, 7.7),
    (INTEGER, 64, 0.0, 64.0),
]
VALUES = {dtype: adversarial_values(dtype) for dtype in launching.ELEMENT_TYPES}
ROWS, ROW, STEP = 3, 1, 2**40


@dataclass(frozen=True)
class Case:
    """One launch.

    Attributes:
        target: "sm_80" or "sm_90".
        dtype: Of the values.
        data: A key of `adversarial_values`.
        numel: How many of the values, repeated where they are too few; None for all.
        offset: How many elements after a 16-byte boundary they begin.
        binning: kind, bins, low, high.
        many: Whether by the multi-tensor kernel.
        inline_ptx: How to count.
        programs: Of how many thread blocks at most.
        seed: Of the order of blocks and warps.
    """

    target: str = "sm_90"
    dtype: torch.dtype = torch.float32
    data: str = "normal"
    numel: int | None = None
    offset: int = 0
    binning: tuple[int, int, float, float] = BINNINGS[0]
    many: bool = False
    inline_ptx: bool = True
    programs: int = 2
    seed: int = 0


def random_case(seed: int) -> Case:
    """One of very many cases."""
    rng = random.Random(seed)
    dtype = rng.choice(list(VALUES))
    return Case(
        target=rng.choice(["sm_80", "sm_90"]),
        dtype=dtype,
        data=rng.choice(list(VALUES[dtype])),
        numel=rng.choice([None, 0, 1, 7, 511, 513, 4097, 8191, 8192, 20_000]),
        offset=rng.choice([0, 0, 1, 2, 16 // dtype.itemsize - 1]),
        binning=rng.choice(BINNINGS),
        many=rng.random() < 0.4,
        inline_ptx=rng.random() < 0.5,
        programs=rng.randint(1, 5),
        seed=seed,
    )


def variants(target: str) -> list[Case]:
    """A case for each way that the kernels can be compiled for a GPU: dtype, binning, kernel and way of counting."""
    return [
        replace(random_case(seed), target=target, dtype=dtype, binning=binning, many=many, inline_ptx=inline_ptx)
        for seed, (dtype, binning, many, inline_ptx) in enumerate(
            (dtype, binning, many, inline_ptx)
            for dtype in VALUES
            for binning in BINNINGS[1:]
            for many in (False, True)
            for inline_ptx in (False, True)
        )
    ]


def check(case: Case, change=lambda text: text) -> int:
    """Run a case against the reference.

    Args:
        case: What to run.
        change: Plants a fault in the PTX text.

    Returns:
        How many instructions ran.

    Raises:
        Fault: What the executor finds.
        AssertionError: A result that is not the reference's.
    """
    kind, bins = case.binning[:2]
    compiled = compile_kernel(case.target, case.dtype, many=case.many, inline_ptx=case.inline_ptx, kind=kind, bins=bins)
    values = _values(case)
    partials = torch.zeros(ROWS, PARTIALS_PLACES, 4, dtype=torch.float64)
    actual, expected = allocate(ROWS, "cpu"), allocate(ROWS, "cpu")
    actual = HistogramState(actual.counts, actual.moments, partials, actual.places)
    memory = GlobalMemory()
    # What lies before the first value, up to the 16-byte boundary, is read, too, but must not be counted.
    before = np.full(case.offset * case.dtype.itemsize, 0xFF, np.uint8)
    data = np.concatenate([before, values.view(torch.uint8).numpy()])
    address = memory.place("the values", np.append(data, np.zeros(-data.size % 16, np.uint8))) + before.size
    bank = [
        memory.place(name, getattr(actual, name).numpy(), is_writable=True)
        for name in ("counts", "moments", "partials")
    ]
    # Which row each place means: the launches must count into ROW, by way of it, and skip the place that means none.
    bank.append(memory.place("places", np.array([-1, 2, ROW])))
    step = memory.place("the step", np.array([STEP]))
    numbers = launching._numbers(*case.binning, case.dtype in launching._FLOAT64_DTYPES)
    tiles = launching._tiles(values.numel(), case.dtype)
    if case.many:
        table = np.array(launching._segments([0, values.numel(), values.numel()], case.dtype, case.programs))
        tensors = memory.place("the tensors", np.array([[address, 1], [address, 2], [address, 0]]))
        blocks, arguments = len(table), [memory.place("the table", table), tensors, *bank, step, 2, *numbers]
        reference.histogram_(values[:0], expected.counts, expected.moments, STEP, ROW + 1, *case.binning)
    else:
        blocks = min(tiles, case.programs)
        arguments = [address, values.numel(), tiles, *bank, step, 2, 2, *numbers]
    text = program.read(change(compiled.asm["ptx"]), compiled.metadata.shared)
    executed = launch(text, memory, arguments, launching.THREADS, blocks, random.Random(case.seed))
    reference.histogram_(values, expected.counts, expected.moments, STEP, ROW, *case.binning)
    assert_same_histograms(actual, expected)
    assert not partials[:, 0].any(), "the ticket must be left at zero"
    return executed


def _values(case: Case) -> torch.Tensor:
    known = VALUES[case.dtype]
    values = known.get(case.data, next(iter(known.values())))
    if case.numel is None:
        return values.clone()
    return values.repeat(-(-case.numel // values.numel()))[: case.numel].clone()
