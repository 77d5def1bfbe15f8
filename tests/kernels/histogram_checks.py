"""For tests of kernels: values that break careless ones, and exact comparison of two banks of histograms."""

import math

import torch

from d9d_tracker_kernels.bank import HistogramState
from d9d_tracker_kernels.binning import LAST_STEP, Moment

# Sums in kernels run over a few elements in float32 before they go on in float64.
SUM_TOLERANCE = 2.0**-20


def adversarial_values(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Named tensors, on the CPU, of the given dtype: what kernels get wrong.

    Args:
        dtype: Any dtype that the operators accept.
    """
    generator = torch.Generator().manual_seed(0)
    if not dtype.is_floating_point:
        return _adversarial_integers(dtype, generator)
    normal = torch.randn(8201, dtype=torch.float64, generator=generator)
    mixed = normal.clone()
    mixed[::17], mixed[5::31], mixed[7::29], mixed[3::11], mixed[4::11] = math.nan, math.inf, -math.inf, 0.0, -0.0
    info = torch.finfo(dtype)
    # Not float64's own ends: squares must stay in float64.
    smallest, largest = max(info.smallest_normal, 2.0**-400), min(info.max, 2.0**400)
    steps = torch.tensor([math.inf, -math.inf], dtype=dtype)
    edges = torch.linspace(-4, 4, 65).to(dtype)
    exponents = torch.rand(3000, dtype=torch.float64, generator=generator) * 2 - 1
    values = {
        "normal": normal,
        "constant": torch.full((3001,), 0.75),
        "zeros": torch.zeros(1025),
        "negative zeros": torch.full((300,), -0.0),
        "zeros and one NaN": torch.cat([torch.zeros(5000), torch.tensor([math.nan])]),
        "alternating signs": torch.tensor([1.0, -1.0]).repeat(2500),
        "only NaN": torch.full((777,), math.nan),
        "only Inf": torch.full((600,), math.inf),
        "only -Inf": torch.full((600,), -math.inf),
        "mixed": mixed,
        "tiny": normal[:3000] * smallest * 4,
        "tiny squares": normal[:3000] * max(2.0**-72, smallest),
        "denormal": normal[:2000] * smallest / 4,
        "huge": (normal[:3000] / 8).clamp(-1, 1) * largest,
        "wide": normal[:3000] * 10.0 ** (exponents * math.log10(largest) / 2),
        "edges": torch.cat([edges, edges.nextafter(steps[0]), edges.nextafter(steps[1])]),
    }
    if dtype == torch.float64:
        values["outside float32"] = normal[:1000] * torch.tensor(
            [1e300, 1e-300, 2.0**128, 2.0**-127, 2.0**-140]
        ).repeat(200)
    return {name: tensor.to(dtype) for name, tensor in values.items()}


def _adversarial_integers(dtype: torch.dtype, generator: torch.Generator) -> dict[str, torch.Tensor]:
    if dtype == torch.bool:
        return {"bits": torch.rand(5000, generator=generator) < 0.3, "false": torch.zeros(100, dtype=dtype)}
    info = torch.iinfo(dtype)
    extremes = torch.tensor([info.min, info.min + 1, -1 if info.min else 0, 0, 1, 2, info.max - 1, info.max])
    values = {
        "small": torch.randint(max(-3, info.min), 70, (9001,), generator=generator),
        "extremes": extremes.repeat(101),
        "zeros": torch.zeros(1025),
    }
    if dtype == torch.int64:
        powers = 2 ** torch.arange(50, 63)
        values["around powers of two"] = torch.cat([powers, powers - 1, powers + 1, -powers, -powers - 1, 1 - powers])
        for distance in (-1, 1, 2, 3):
            values[f"2**53 + {distance}"] = torch.tensor([2**53 + distance])
    return {name: tensor.to(dtype) for name, tensor in values.items()}


def assert_same_histograms(actual: HistogramState, expected: HistogramState) -> None:
    """Counts, minima and maxima must be equal, sums within `SUM_TOLERANCE` of the sum of magnitudes.

    Args:
        actual: What a kernel counted, on any device.
        expected: What the reference counted.

    Raises:
        AssertionError: Naming the row and column that differ.
    """
    counts, moments = actual.counts.cpu(), actual.moments.cpu()
    differing = (counts != expected.counts).nonzero().tolist()
    assert not differing, f"counts differ at [row, column] {differing[:5]}"
    for column in (Moment.MIN, Moment.MAX):
        assert torch.equal(moments[:, column], expected.moments[:, column]), (
            f"{column.name}: {moments[:, column].tolist()} instead of {expected.moments[:, column].tolist()}"
        )
    squares = expected.moments[:, Moment.SUM_SQUARES]
    numbers = expected.counts[:, LAST_STEP + 1 :].sum(1)
    # Cauchy and Schwarz: the sum of magnitudes is at most sqrt(count * sum of squares).
    magnitudes = (numbers * squares).sqrt()
    for column, scale in ((Moment.SUM, magnitudes), (Moment.SUM_SQUARES, squares)):
        difference = (moments[:, column] - expected.moments[:, column]).abs()
        is_equal = moments[:, column] == expected.moments[:, column]
        assert (is_equal | (difference <= SUM_TOLERANCE * scale)).all(), (
            f"{column.name}: {moments[:, column].tolist()} instead of {expected.moments[:, column].tolist()}"
        )
