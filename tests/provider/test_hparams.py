"""Whatever is put in, plain data comes out."""

import dataclasses
import enum
import math

import numpy as np
import torch
from pydantic import BaseModel

from d9d_tracker.provider.hparams import plain_hparams


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Optimizer:
    lr: float
    betas: tuple[float, float]


class Model(BaseModel):
    width: int


def test_known_types_become_what_they_mean() -> None:
    given = {"colour": Colour.RED, "optimizer": Optimizer(0.1, (0.9, 0.99)), "model": Model(width=3), "n": np.int64(2)}
    optimizer = {"lr": 0.1, "betas": [0.9, 0.99]}
    assert plain_hparams(given) == {"colour": "red", "optimizer": optimizer, "model": {"width": 3}, "n": 2}


def test_unknown_types_become_their_repr() -> None:
    circle: list[object] = []
    circle.append(circle)
    given = {"dtype": torch.bfloat16, "function": math.sin, "bytes": b"\xff", "circle": circle, "value": 1j}
    plain = plain_hparams(given)
    assert plain["dtype"] == "torch.bfloat16"
    assert plain["function"] == "<built-in function sin>"
    assert plain["bytes"] == repr(b"\xff")
    assert plain["circle"] == "[[...]]"


def test_the_original_is_untouched() -> None:
    given = {"a": {"b": (1, 2)}}
    plain_hparams(given)["a"]["b"].append(3)
    assert given == {"a": {"b": (1, 2)}}
