"""Names and contexts as one text, and as MLflow takes them."""

import pytest
from mlflow.utils.validation import _validate_metric

from d9d_tracker.hparams import flat_hparams
from d9d_tracker.provider.mlflow.keys import chunks, valid_key
from d9d_tracker.provider.names import flat_name


def test_tags_follow_the_name_in_order() -> None:
    assert flat_name("loss", {}) == "loss"
    assert flat_name("a/loss", {"stage": "train", "rank": "0"}) == "a/loss/rank=0/stage=train"
    assert flat_name("loss", {"stage": "train"}, sign=":") == "loss/stage:train"


def test_different_series_never_share_a_text() -> None:
    series = [
        ("loss", {"a": "b"}),
        ("loss/a=b", {}),
        ("loss", {"a": "b/c=d"}),
        ("loss", {"a": "b", "c": "d"}),
        ("loss", {"a=b": ""}),
        ("loss", {"a": "=b"}),
        ("loss/a", {"": "b"}),
        ("loss", {"a%3D": "b"}),
        ("loss", {"a=": "b"}),
        ("loss", {"a": "b%2Fc"}),
        ("loss", {"a": "b/c"}),
    ]
    assert len({flat_name(name, context) for name, context in series}) == len(series)


ODD = [
    "loss (train)",
    "loss [train]",
    "acc@1",
    "acc@5",
    "a//b",
    "/a",
    "a/",
    "../a",
    "a/../b",
    ".",
    "x" * 251,
    "😀",
    " ",
]


@pytest.mark.parametrize("key", ODD)
def test_mlflow_takes_every_key(key: str) -> None:
    _validate_metric(valid_key(key), 1.0, 0, 0)
    assert valid_key(key) == valid_key(key)


def test_mlflow_keys_stay_apart_and_good_ones_as_they_are() -> None:
    assert len({valid_key(key) for key in ODD}) == len(ODD)
    for key in ("loss", "a/loss/stage:train", "gradient norm", "größe", "x" * 250, "layers.0.weight"):
        assert valid_key(key) == key


def test_long_texts_go_on_in_further_tags() -> None:
    assert chunks("note", "abcde", 2) == {"note": "ab", "note/2": "cd", "note/3": "e"}
    assert chunks("note", "", 2) == {"note": ""}


def test_hparams_become_one_level() -> None:
    nested = {"lr": {"peak": 0.1, "end": None}, "layers": [1, {"a": 2}], "empty": {}, "on": True, "big": 2**70}
    assert flat_hparams(nested) == {
        "lr.peak": 0.1,
        "lr.end": "None",
        "layers": '[1, {"a": 2}]',
        "empty": "{}",
        "on": True,
        "big": str(2**70),
    }
    assert flat_hparams({"a.b": 1, "a": {"b": 2}, "x": float("nan")}) == {"a.b": 1, "a.b~2": 2, "x": "nan"}
    assert flat_hparams({}) == {}
