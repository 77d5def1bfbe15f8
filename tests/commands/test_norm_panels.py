"""Norms in a picture: a surface for each kind, and curves on one axis."""

import math

import numpy as np
import pytest

from d9d_tracker import JsonlTrackerConfig, RunConfig, tracker_from_config
from d9d_tracker.commands.norm_panels import common_view, family_of, surface
from d9d_tracker.commands.plot import plot
from d9d_tracker.reading import Scalars

figures = pytest.importorskip("matplotlib.figure", reason="pip install matplotlib")


def norms(values: dict[str, list[float]]) -> list[Scalars]:
    return [Scalars(name, {}, np.arange(len(one)), np.array(one), np.zeros(len(one))) for name, one in values.items()]


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("norms/gradients/0.weight", "norms/gradients"),
        ("actor/norms/ratios/h.0", "actor/norms/ratios"),
        ("norms/gradients", None),
        ("norms/other/0.weight", None),
        ("loss", None),
    ],
)
def test_families(name, family):
    assert family_of(name) == family


def test_the_common_axis_shows_all_that_can_be_shown():
    low, high = common_view(norms({"a": [1.0, math.nan, 0.0], "b": [100.0, math.inf, 10.0]}))
    assert 0 < low < 1 < 100 < high
    assert common_view(norms({"a": [0.0, math.nan]})) is None


def test_a_surface_has_a_row_for_each_part_and_a_color_map_for_each_norm():
    maps = set()
    for kind in ("gradients", "parameters", "updates", "ratios"):
        axes = figures.Figure().subplots()
        series = norms({f"norms/{kind}/{name}": [1.0, 10.0, math.nan] for name in ("$0", "1")})
        surface(f"norms/{kind}", series, axes)
        (mesh,) = axes.collections
        assert mesh.get_array().shape == (2, 3)
        assert np.ma.count_masked(np.ma.masked_invalid(mesh.get_array())) == 2
        assert [label.get_text() for label in axes.get_yticklabels()] == ["$0", "1"]
        assert (mesh.norm.vmin, mesh.norm.vmax) == pytest.approx(common_view(series))
        maps.add(mesh.get_cmap().name)
    assert len(maps) == 4


def test_a_long_run_keeps_its_spikes():
    values = np.ones(10_000)
    values[7_777] = 50.0
    axes = figures.Figure().subplots()
    surface("norms/gradients", norms({"norms/gradients/0": values.tolist(), "norms/gradients/1": [1.0]}), axes)
    table = axes.collections[0].get_array()
    assert table.shape[1] <= 400
    assert np.nanmax(table) == 50.0


def test_plot_draws_norms_as_surfaces_and_on_one_axis(tmp_path, monkeypatch):
    tracker = tracker_from_config(JsonlTrackerConfig(path=tmp_path, accumulator={"device": "cpu", "summary": False}))
    with tracker.open(RunConfig(name="run")) as run:
        for step in range(5):
            run.set_step(step)
            run.scalars({f"norms/gradients/{layer}": 10.0**layer + step for layer in range(3)})
            run.scalars({"norms/gradients": 7.0 + step, "loss": 1.0})
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, *args, **kwargs: drawn.append(list(figure.axes)))
    assert plot([tmp_path], ["norms/*"], tmp_path / "norms.png") == []
    axes = {one.get_title("left"): one for one in drawn[0] if one.get_title("left")}
    assert list(axes) == [
        "norms/gradients, layer by step",
        "norms/gradients",
        *(f"norms/gradients/{layer}" for layer in range(3)),
    ]
    limits = {axes[f"norms/gradients/{layer}"].get_ylim() for layer in range(3)}
    assert len(limits) == 1
    assert {axes[f"norms/gradients/{layer}"].get_yscale() for layer in range(3)} == {"log"}
    assert axes["norms/gradients"].get_yscale() == "linear"
