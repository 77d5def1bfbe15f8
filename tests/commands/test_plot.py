"""A picture of runs: which panels it has, and that it is one."""

import math

import matplotlib.figure
import numpy as np
import pytest

from d9d_tracker import Record
from d9d_tracker.__main__ import main
from d9d_tracker.commands.panels import running_mean, thinned
from tests.reading.conftest import histogram


@pytest.fixture
def drawn(monkeypatch):
    """Keep the figures that are saved."""
    figures = []
    save = matplotlib.figure.Figure.savefig

    def keep(figure, *arguments, **keywords):
        figures.append(figure)
        save(figure, *arguments, **keywords)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return figures


def panels(figure):
    """Return the panels in view by their title."""
    return {axes.get_title("left"): axes for axes in figure.get_axes() if axes.get_visible()}


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()] if axes.get_legend() else []


def test_a_run_is_curves_bands_and_heat_maps(stored, drawn, image, tmp_path):
    records = [Record("loss", step, {"stage": stage}, 1 / (1 + step)) for step in range(9) for stage in "ab"]
    records += [Record("weights", step, {}, histogram(step)) for step in range(0, 9, 2)]
    out = tmp_path / "new" / "plot.png"
    assert main(["plot", str(stored(records)), "--out", str(out)]) == 0
    height, width, _ = image(out).shape
    assert width > height > 300
    (figure,) = drawn
    found = panels(figure)
    assert list(found) == ["loss", "weights: median, 50, 90 and 98%", "weights"]
    assert legend(found["loss"]) == ["stage=a", "stage=b"]
    np.testing.assert_array_equal(found["loss"].lines[0].get_xydata()[:, 1], 1 / (1 + np.arange(9.0)))
    (mesh,) = found["weights"].collections
    assert mesh.get_array().shape == (120, 5)  # five histograms
    # Each column holds all of a histogram's values, within the range that is drawn.
    np.testing.assert_allclose((np.asarray(mesh.get_array()) ** 2).sum(axis=0), 1, atol=0.05)
    median = found["weights: median, 50, 90 and 98%"].lines[0].get_xydata()
    np.testing.assert_allclose(median[:, 1], np.arange(0, 9, 2), atol=0.3)


def test_runs_are_side_by_side_with_what_differs(stored, drawn, tmp_path):
    for lr in (0.1, 0.2):
        records = [Record("loss", step, {}, lr) for step in range(3)] + [Record("weights", 2, {}, histogram())]
        path = stored(records, hparams={"lr": lr, "seed": 1}, file=f"runs/{lr}.jsonl")
    assert main(["plot", str(path.parent), "--out", str(tmp_path / "plot.svg")]) == 0
    found = panels(drawn[0])
    assert legend(found["loss"]) == ["lr=0.1", "lr=0.2"]
    assert {"weights  lr=0.1", "weights  lr=0.2"} < set(found)


def test_runs_that_do_not_differ_are_named_by_their_files(stored, drawn, tmp_path):
    paths = [str(stored([Record("loss", 1, {}, 1.0)], file=f"{name}.jsonl")) for name in "ab"]
    assert main(["plot", *paths, "--out", str(tmp_path / "plot.png")]) == 0
    assert legend(panels(drawn[0])["loss"]) == ["a", "b"]


def test_a_spike_does_not_flatten_a_curve(stored, drawn, tmp_path):
    values = [1e6 if step == 500 else 1 / (1 + step) for step in range(1000)]
    path = stored([Record("loss", step, {}, value) for step, value in enumerate(values)])
    assert main(["plot", str(path), "--out", str(tmp_path / "plot.png")]) == 0
    assert main(["plot", str(path), "--out", str(tmp_path / "plot.png"), "--clip", "100"]) == 0
    assert panels(drawn[0])["loss"].get_ylim()[1] < 1
    assert panels(drawn[1])["loss"].get_ylim()[1] > 1e6


def test_steps_zoom_smooth_and_log(stored, drawn, tmp_path):
    path = stored([Record("loss", step, {}, 1.0 + step) for step in range(100)])
    options = ["--steps", "10:19", "--smooth", "3", "--log"]
    assert main(["plot", str(path), "--out", str(tmp_path / "plot.png"), *options]) == 0
    axes = panels(drawn[0])["loss"]
    raw, smooth = (line.get_xydata() for line in axes.lines)
    assert raw[:, 0].tolist() == list(range(10, 20))
    assert smooth[2:, 1].tolist() == [12.0 + k for k in range(8)]
    assert axes.get_yscale() == "log"


def test_what_is_not_finite_is_marked(stored, drawn, tmp_path):
    path = stored([Record("loss", step, {}, math.inf if step > 5 else 1.0) for step in range(9)])
    assert main(["plot", str(path), "--out", str(tmp_path / "plot.png")]) == 0
    assert "not finite from step 6" in legend(panels(drawn[0])["loss"])


def test_more_series_than_fit_are_said(stored, drawn, tmp_path, capsys):
    path = stored([Record(f"s{k}", 1, {}, 1.0) for k in range(5)])
    assert main(["plot", str(path), "--out", str(tmp_path / "plot.png"), "--max", "2"]) == 0
    assert "left out 3 series, from 's2' on" in capsys.readouterr().out
    assert list(panels(drawn[0])) == ["s0", "s1"]


def test_what_cannot_be_drawn_is_said_in_one_line(stored, tmp_path, capsys):
    path = str(stored([Record("loss", 1, {}, 1.0)]))
    assert main(["plot", path, "--series", "acc*"]) == 1
    assert "no points of a series acc*; there are: loss" in capsys.readouterr().err
    assert main(["plot", path, "--out", str(tmp_path / "plot.xyz")]) == 1
    assert "xyz" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["plot", path, "--steps", "a:b"])
    assert "FROM:TO" in capsys.readouterr().err


def test_running_means_leave_out_what_is_not_finite():
    values = np.array([1.0, 3.0, math.nan, 5.0, math.inf])
    np.testing.assert_array_equal(running_mean(values, 2), [1, 2, 3, 5, 5])
    np.testing.assert_array_equal(running_mean(np.array([math.nan, 1.0]), 2), [math.nan, 1])


def test_thinning_keeps_extremes_and_order():
    values = np.random.default_rng(0).normal(size=100_003)
    values[777], values[50_001] = 99.0, -99.0
    steps, kept = thinned(np.arange(len(values)), values)
    assert len(kept) <= 20_100
    assert {99.0, -99.0} <= set(kept)
    assert (np.diff(steps) > 0).all()
    np.testing.assert_array_equal(kept, values[steps])
