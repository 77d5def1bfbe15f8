"""Whatever is put in, plain data comes out."""

import dataclasses
import enum
import math
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import torch
from ml_collections import ConfigDict
from omegaconf import OmegaConf
from pydantic import BaseModel

from d9d_tracker.hparams import flat_hparams, plain_hparams


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
    assert plain["circle"] == ["[[...]]"]


def test_the_original_is_untouched() -> None:
    given = {"a": {"b": (1, 2)}}
    plain_hparams(given)["a"]["b"].append(3)
    assert given == {"a": {"b": (1, 2)}}


class Angry:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_what_people_have() -> None:
    config = OmegaConf.create({"lr": 0.1, "twice": "${lr}", "layers": [1, {"width": 2}], "missing": "???"})
    collection = ConfigDict({"a": {"b": 1}})
    collection.same = collection.get_ref("a")
    given = {
        "omegaconf": config,
        "of a part": {"layers": config.layers},
        "ml_collections": collection,
        "argparse": Namespace(depth=2, nested=Namespace(x=1.5)),
        "simple": SimpleNamespace(y=[SimpleNamespace(z=None)]),
        "array": np.arange(3),
        "tensor": torch.tensor([[1.5, 2.0]]),
        "one": torch.tensor(0.1, dtype=torch.float64),
        "large": 2**70,
        "digits": 0.1 + 0.2,
        "set": {3},
    }
    assert plain_hparams(given) == {
        "omegaconf": {"lr": 0.1, "twice": 0.1, "layers": [1, {"width": 2}], "missing": "???"},
        "of a part": {"layers": [1, {"width": 2}]},
        "ml_collections": {"a": {"b": 1}, "same": {"b": 1}},
        "argparse": {"depth": 2, "nested": {"x": 1.5}},
        "simple": {"y": [{"z": None}]},
        "array": [0, 1, 2],
        "tensor": [[1.5, 2.0]],
        "one": 0.1,
        "large": 2**70,
        "digits": 0.30000000000000004,
        "set": [3],
    }


def test_a_reference_that_leads_nowhere_is_kept_as_text() -> None:
    config = OmegaConf.create({"a": "${nowhere}", "b": 1})
    assert plain_hparams({"config": config}) == {"config": {"a": "${nowhere}", "b": 1}}
    assert plain_hparams(OmegaConf.create({"b": 1})) == {"b": 1}


def test_an_iterator_is_not_consumed() -> None:
    numbers, pairs = iter([1, 2]), (pair for pair in "ab")
    plain = plain_hparams({"numbers": numbers, "pairs": pairs})
    assert (list(numbers), list(pairs)) == ([1, 2], ["a", "b"])
    assert "list_iterator" in plain["numbers"]


def test_nothing_is_lost_without_a_word() -> None:
    plain = plain_hparams({"by": {1: "int", "1": "text", None: 0, (1, 2): 3}, "angry": [Angry()]})
    assert plain["by"] == {"1": "int", "1~2": "text", "None": 0, "(1, 2)": 3}
    assert plain["angry"] == ["<Angry, whose repr raises RuntimeError>"]
    assert flat_hparams({"a": {"b": 1}, "a.b": 2}) == {"a.b": 1, "a.b~2": 2}


def test_what_is_large_or_deep_has_an_end() -> None:
    deep: dict[str, object] = {}
    for _ in range(10_000):
        deep = {"in": deep}
    assert plain_hparams({"deep": deep, "weights": torch.zeros(10**6)})["weights"].startswith("tensor(")
