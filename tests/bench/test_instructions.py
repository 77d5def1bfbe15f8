"""The count of instructions: what it makes of counts; counting itself takes an hour and Valgrind."""

import pytest

from bench.contenders import Nothing
from bench.instructions import tabulate
from bench.interleave import Spread
from bench.plots import draw

ITEM, NULL = ".item() to a list", "d9d_tracker → null"


@pytest.fixture
def result():
    return tabulate(
        {
            (Nothing.name, 1): (1e6, 0.9e6),
            ("nothing, once more", 1): (1.001e6, 0.9e6),
            (ITEM, 1): (1.02e6, 0.92e6),
            (NULL, 1): (1.03e6, 0.91e6),
            (Nothing.name, 10): (2e6, 1.8e6),
            (NULL, 10): "it has died",
        }
    )


def test_each_is_held_against_the_untracked_step_of_as_many_values(result):
    found = {(row.name, row.group): row for row in result.rows}
    assert set(found) == {(name, "1 scalar") for name in ("nothing, once more", ITEM, NULL)}
    cells = found[NULL, "1 scalar"].cells
    assert cells["vs untracked"] == Spread(1.03, 1.03, 1.03)
    assert cells["added, thousands"] == pytest.approx(30)
    assert cells["of it on the training thread"] == pytest.approx(10)
    kinds = {name: row.kind for (name, _), row in found.items()}
    assert kinds == {"nothing, once more": "baseline", ITEM: "by hand", NULL: "ours"}


def test_what_is_missing_and_who_is_cheaper_is_said(result):
    assert result.missing == {f"{NULL}, 10 scalars": "it has died"}
    assert any(remark.startswith(f"1 scalar: {ITEM} beat {NULL}") for remark in result.remarks)


def test_it_is_drawn(result, tmp_path):
    (picture,) = draw([result], tmp_path, "a machine")
    assert picture.name == "instructions.png"
    assert picture.stat().st_size > 10_000
