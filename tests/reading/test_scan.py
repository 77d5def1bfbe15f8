"""Points are read as they were written, whatever the block in which a line falls."""

import json

import numpy as np
import pytest

from d9d_tracker import Histogram, Record
from d9d_tracker.provider.jsonl_format import hparams_line, record_line
from d9d_tracker.reading import scan as scan_module
from d9d_tracker.reading.scan import Key, scan
from tests.reading.conftest import histogram

NAMES = ["loss", 'say "no"', "back\\slash", "größe", "a{b}", "new\nline", "a,b"]


def points(path, wanted=lambda key: True, name=None):
    found = {}
    for part in scan(path, wanted, name):
        if part.values is not None:
            found.setdefault(part.key, []).extend(zip(part.steps.tolist(), part.values, strict=True))
    return found


@pytest.mark.parametrize("size", [1, 7, 100, 1000, 1 << 20])
def test_any_size_of_a_block_gives_the_same(stored, monkeypatch, size):
    monkeypatch.setattr(scan_module, "_BLOCK_BYTES", size)
    records = [Record(name, step, {"tag": name}, step / 3) for step in range(20) for name in NAMES]
    path = stored(records)
    expected = {Key("scalar", name, (("tag", name),)): [(step, step / 3) for step in range(20)] for name in NAMES}
    assert points(path) == expected
    for name in NAMES:
        assert points(path, lambda key, name=name: key.name == name, name) == {
            Key("scalar", name, (("tag", name),)): [(step, step / 3) for step in range(20)]
        }


def test_numbers_are_those_that_were_written(stored):
    values = [0.1, -0.0, 5e-324, 1.7976931348623157e308, float("inf"), float("-inf"), float("nan"), 1e22, 123456789.0]
    path = stored([Record("v", step, {}, value, 1764345600.123456) for step, value in enumerate(values)])
    (part,) = scan(path, lambda key: True)
    assert part.values.tobytes() == np.array(values).tobytes()
    assert part.times.tolist() == [1764345600.123456] * len(values)


def test_points_without_time_have_none(stored):
    (part,) = scan(stored([Record("v", 0, {}, 1.0), Record("v", 1, {}, 1.0, 5.0)]), lambda key: True)
    np.testing.assert_array_equal(part.times, [np.nan, 5.0])


def test_lines_that_others_wrote_are_read(stored):
    path = stored([])
    with path.open("a") as file:
        line = {"step": 3, "type": "scalar", "value": 2, "context": {}, "name": "loss"}
        file.write(json.dumps(line) + "\n" + json.dumps({**line, "step": 4}, indent=None) + "\n")
    assert points(path, name="loss") == {Key("scalar", "loss", ()): [(3, 2.0), (4, 2.0)]}


def test_histograms_are_decoded_only_if_they_are_wanted(stored, monkeypatch):
    path = stored([Record("weights", step, {}, histogram(step)) for step in range(3)])
    wanted = points(path)[Key("histogram", "weights", ())]
    assert [(step, value.count) for step, value in wanted] == [(0, 8), (1, 8), (2, 8)]
    monkeypatch.setattr(scan_module, "read_record", lambda fields: pytest.fail("a histogram was decoded"))
    parts = list(scan(path, lambda key: False))
    assert [(part.key.name, part.steps.tolist(), part.values) for part in parts] == [
        ("weights", [step], None) for step in range(3)
    ]


def test_what_a_kill_tore_off_is_left_out(stored):
    path = stored([Record("loss", step, {}, 1.0) for step in range(3)])
    whole = path.read_bytes()
    for cut in range(1, len(record_line(Record("loss", 2, {}, 1.0)))):
        path.write_bytes(whole[:-cut])
        assert points(path) == {Key("scalar", "loss", ()): [(0, 1.0), (1, 1.0)]}
    path.write_bytes(whole[:-10] + b"\n")
    assert points(path) == {Key("scalar", "loss", ()): [(0, 1.0), (1, 1.0)]}


@pytest.mark.parametrize("size", [1, 1 << 20])
@pytest.mark.parametrize("damage", [b'{"type":"scalar","na\n', b"\x00\x00\x00\n"])
@pytest.mark.parametrize("after", ["odd\\name", "loss", "weights"])
def test_damage_within_a_file_is_named(stored, monkeypatch, size, damage, after):
    monkeypatch.setattr(scan_module, "_BLOCK_BYTES", size)
    path = stored([Record("loss", 0, {}, 1.0)])
    last = Record(after, 1, {}, histogram() if after == "weights" else 1.0)
    path.write_bytes(path.read_bytes() + damage + record_line(last))
    for name in (None, "loss", "another"):
        with pytest.raises(ValueError, match=r"run\.jsonl: a line is not JSON but others follow; mend or remove"):
            points(path, name=name)


@pytest.mark.parametrize(
    "line",
    [
        {"type": "scalar", "name": "loss", "step": 1},
        {"type": "other"},
        {"type": "scalar", "name": "loss", "step": 1, "value": "much", "context": {}},
        7,
    ],
)
def test_lines_that_are_no_points_are_named(stored, line):
    path = stored([Record("loss", 0, {}, 1.0)])
    path.write_bytes(path.read_bytes() + json.dumps(line).encode() + b"\n")
    with pytest.raises(ValueError, match=r"run\.jsonl: .*; mend or remove that line"):
        points(path)


def test_lines_of_hyperparameters_are_passed_over(stored):
    path = stored([Record("loss", 0, {}, 1.0)])
    path.write_bytes(path.read_bytes() + hparams_line({"lr": 1}))
    assert len(points(path)) == 1
    assert path.read_bytes().startswith(b'{"type":"run","id":"x"')
    assert isinstance(histogram(0), Histogram)
