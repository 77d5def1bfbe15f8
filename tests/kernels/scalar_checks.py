"""What the tests of the scalar kernels share."""

import math
import random

import torch

from d9d_tracker_kernels.lanes import INITIAL, LAST

COLUMNS = 300
DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)


def bank() -> torch.Tensor:
    """The state of a step in which nothing was logged."""
    return torch.tensor(INITIAL, dtype=torch.float64)[:, None].repeat(1, COLUMNS)


def values_of_every_kind() -> list[torch.Tensor | float]:
    """Numbers and one-element tensors: every dtype, what is not finite, both zeros, denormals, views."""
    numbers = [0.0, -0.0, 1.0, -2.5, math.inf, -math.inf, math.nan, 5e-324, -1e308, 2.0**53 + 2, 16.0]
    values: list[torch.Tensor | float] = list(numbers)
    for dtype in DTYPES:
        if dtype.is_floating_point:
            values += [torch.tensor(number).to(dtype) for number in numbers]
            values.append(torch.tensor(torch.finfo(dtype).smallest_normal / 4, dtype=dtype))
        elif dtype == torch.bool:
            values += [torch.tensor(True), torch.tensor(False)]
        else:
            info = torch.iinfo(dtype)
            values += [torch.tensor(number, dtype=dtype) for number in (info.min, 0, 1, 7, info.max)]
    rows = torch.arange(12.0).reshape(3, 4)
    values += [
        rows[1, 2],
        rows.t()[3:, 2:],
        torch.nn.Parameter(rows[2, 2]),
        torch.complex(rows, rows).conj().imag[2, 3],
    ]
    values.append(torch.tensor(3, dtype=torch.uint16))  # of a dtype that is converted first
    return values


def rounds(lane: int, places: int):
    """Some writes of whole numbers to some of the places; now and then a NaN."""
    generator = random.Random(lane)
    for _ in range(12):
        at = generator.sample(range(places), generator.randint(1, places))
        yield at, [generator.choice([float(generator.randint(-9, 9)), math.nan]) for _ in at]


def assert_same_state(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Refuses states that differ in anything but the payload of a NaN and the sign of a zero that extremes merge."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(actual[LAST].signbit(), expected[LAST].signbit() | actual[LAST].isnan() & actual[LAST].signbit())
