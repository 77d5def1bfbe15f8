"""A picture of runs: which panels it has, and that it is one."""

import math

import matplotlib.figure
import numpy as np
import pytest

from d9d_tracker import Record
from d9d_tracker.__main__ import main
from d9d_tracker.commands import fonts
from d9d_tracker.commands import panels as panels_module
from d9d_tracker.commands.panels import merged, view_of
from d9d_tracker.commands.smoothing import smoothed, thinned
from d9d_tracker.provider.jsonl_format import record_line
from d9d_tracker.reading import Histograms
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
    """Return what the legend of a panel says, or the one of the whole figure."""
    found = [axes.get_legend(), *axes.figure.legends]
    return [text.get_text().strip() for one in found if one is not None for text in one.get_texts()]


def words(axes):
    return [text.get_text() for text in axes.texts]


def limits(axes):
    return axes.get_xlim() + axes.get_ylim()


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
    assert limits(found["weights"]) == limits(found["weights: median, 50, 90 and 98%"])
    assert mesh.get_array().shape == (120, 5)  # five histograms
    # Each column holds all of a histogram's values, within the range that is drawn.
    np.testing.assert_allclose((np.asarray(mesh.get_array()) ** 2).sum(axis=0), 1, atol=0.05)
    median = found["weights: median, 50, 90 and 98%"].lines[0].get_xydata()
    np.testing.assert_allclose(median[1:, 1], np.arange(0, 9, 2), atol=0.3)
    assert median[0].tolist() == [-2, median[1, 1]]  # where the first window begins


def test_what_the_panel_logs_has_its_units(stored, drawn, tmp_path):
    names = ("time/step", "memory/host", "memory/retries", "time/step/max_rank", "timely")
    records = [Record(name, step, {}, 0.001 * (step + 1)) for name in names for step in range(3)]
    assert main(["plot", str(stored(records)), "--out", str(tmp_path / "plot.png")]) == 0
    said = {name: axes.yaxis.get_major_formatter()(0.002) for name, axes in panels(drawn[0]).items()}
    assert said.pop("time/step") == "2 ms"
    assert said.pop("memory/host") == "2 mB"
    assert not any("m" in words for words in said.values())


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
    assert "points out of view (--clip)" in panels(drawn[0])["loss"].get_xlabel()
    assert panels(drawn[1])["loss"].get_ylim()[1] > 1e6


def test_steps_zoom_smooth_and_log(stored, drawn, tmp_path):
    path = stored([Record("loss", step, {}, 1.0 + step) for step in range(100)])
    options = ["--steps", "10:19", "--smooth", "3", "--log"]
    assert main(["plot", str(path), "--out", str(tmp_path / "plot.png"), *options]) == 0
    axes = panels(drawn[0])["loss"]
    raw, smooth = (line.get_xydata() for line in axes.lines)
    assert raw[:, 0].tolist() == list(range(10, 20))
    np.testing.assert_array_equal(smooth, raw)  # the mean around a step of a straight line is on it
    assert axes.get_yscale() == "log"


def test_what_is_not_finite_is_marked(stored, drawn, tmp_path):
    path = stored([Record("loss", step, {}, math.inf if step > 5 else 1.0) for step in range(9)])
    assert main(["plot", str(path), "--out", str(tmp_path / "plot.png")]) == 0
    assert words(panels(drawn[0])["loss"]) == ["3 NaN or inf from step 6"]


def test_more_series_than_fit_are_said(stored, drawn, tmp_path, capsys):
    path = stored([Record(f"s{k}", 1, {}, 1.0) for k in range(5)])
    assert main(["plot", str(path), "--out", str(tmp_path / "plot.png"), "--max", "2"]) == 0
    assert "left out 3 series, from 's2' on" in capsys.readouterr().out
    assert list(panels(drawn[0])) == ["s0", "s1"]


@pytest.mark.parametrize("clip", ["0", "101"])
def test_a_clip_is_a_percentage(clip, capsys):
    with pytest.raises(SystemExit):
        main(["plot", "runs", "--clip", clip])
    assert f"--clip: {clip} is not a percentage above 0, and 100 at most" in capsys.readouterr().err


def test_what_cannot_be_drawn_is_said_in_one_line(stored, tmp_path, capsys):
    path = str(stored([Record("loss", 1, {}, 1.0)]))
    assert main(["plot", path, "--series", "acc*"]) == 1
    assert "no series acc*; there are: loss" in capsys.readouterr().err
    assert main(["plot", path, "--out", str(tmp_path / "plot.xyz")]) == 1
    assert "xyz" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["plot", path, "--steps", "a:b"])
    assert "FROM:TO" in capsys.readouterr().err


NAMES = ("p50 $ / p99 $", "a^b$_{$", "损失", "x" * 300, "tab\tand\nline", "_hidden", "[red]", "\ud800")


def test_names_are_text(stored, drawn, tmp_path, recwarn, monkeypatch):
    """Nothing is a formula, and what no font has is escaped: no box, and no warning."""
    monkeypatch.setattr(fonts, "families", lambda: ["DejaVu Sans"])
    fonts._fonts.cache_clear()
    fonts._is_drawable.cache_clear()
    path = stored([Record(name, 1, {"tag": "$_{", "_t": name[:40]}, 1.0) for name in NAMES], name="损 $a$ run")
    assert main(["plot", str(path), "--out", str(tmp_path / "plot.png")]) == 0
    assert not recwarn.list
    titles = list(panels(drawn[0]))
    assert titles[:3] == ["p50 $ / p99 $", "a^b$_{$", "\\u635f\\u5931"]
    assert len(titles[3]) <= 2 * 58 + 1
    assert "…" in titles[3]
    assert titles[4:] == ["tab\\tand\\nline", "_hidden", "[red]", "\\ud800"]
    assert drawn[0].get_suptitle() == "\\u635f $a$ run"


def test_hyperparameters_that_begin_with_an_underscore_are_labels(stored, drawn, tmp_path, recwarn):
    for k in range(2):
        path = stored([Record("loss", 1, {}, 1.0)], hparams={"_lr": k}, file=f"runs/{k}.jsonl")
    assert main(["plot", str(path.parent), "--out", str(tmp_path / "plot.png")]) == 0
    assert legend(panels(drawn[0])["loss"]) == ["_lr=0", "_lr=1"]
    assert not recwarn.list


def test_labels_are_the_name_then_what_differs_then_the_file(stored, drawn, tmp_path):
    for file, name, lr in (("p", "a", 1), ("q", "b", 1), ("r", "b", 1), ("s", "b", 2)):
        path = stored([Record("loss", 1, {}, 1.0)], name=name, hparams={"lr": lr}, file=f"runs/{file}.jsonl")
    assert main(["plot", str(path.parent), "--out", str(tmp_path / "plot.png")]) == 0
    assert legend(panels(drawn[0])["loss"]) == ["a  lr=1", "b  lr=1  q", "b  lr=1  r", "b  lr=2"]


def test_long_labels_are_shortened_and_stand_outside(stored, drawn, tmp_path):
    for k in range(2):
        hparams = {f"model.layer{layer}.width": k + layer for layer in range(12)}
        path = stored([Record("loss", 1, {}, 1.0)], hparams=hparams, file=f"runs/{k}.jsonl")
    assert main(["plot", str(path.parent), "--out", str(tmp_path / "plot.png")]) == 0
    axes = panels(drawn[0])["loss"]
    assert axes.get_legend() is None
    assert legend(axes) == [f"model.layer0.width={k}, +11 more" for k in range(2)]
    below = drawn[0].legends[0].get_window_extent().y1
    assert below <= axes.get_tightbbox().y0 + 1
    assert drawn[0].legends[0].get_window_extent().x1 <= drawn[0].get_window_extent().x1


def test_more_than_eight_contexts_are_told_apart(stored, drawn, tmp_path):
    path = stored([Record("acc", step, {"task": f"t{k}"}, float(k)) for k in range(20) for step in range(3)])
    assert main(["plot", str(path), "--out", str(tmp_path / "plot.png")]) == 0
    axes = panels(drawn[0])["acc"]
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 20
    assert legend(axes) == [f"task=t{k}" for k in range(20)]


def test_many_ranks_are_quantiles(stored, drawn, tmp_path):
    records = [Record("time", step, {"rank": str(k)}, float(k)) for k in range(17) for step in range(3)]
    records += [Record("grad", 2, {"rank": str(k)}, histogram(k)) for k in range(17)]
    path = stored([record for record in records if record.step != 1 or record.context["rank"] != "16"])
    assert main(["plot", str(path), "--out", str(tmp_path / "plot.png")]) == 0
    found = panels(drawn[0])
    axes = found["time"]
    assert legend(axes) == ["rank: all 17"]
    assert axes.lines[0].get_ydata().tolist() == [8, 7.5, 8]
    everything = axes.collections[0].get_paths()[0].get_extents()
    assert (everything.y0, everything.y1) == (0, 16)
    assert "grad  rank: all 17" in found
    assert len(found) == 3


def test_histograms_of_ranks_are_merged():
    several = [
        Histograms("g", {}, np.array(steps), [histogram(k)] * len(steps), np.zeros(len(steps)))
        for k, steps in enumerate(([1, 2], [2], [2, 3]))
    ]
    one = merged(several)
    assert one.steps.tolist() == [1, 2, 3]
    assert [value.count for value in one.values] == [8, 24, 8]
    assert (one.values[1].min, one.values[1].max) == (-1, 3)
    assert one.values[1].mean == pytest.approx(1.0)


def heat_map_rows(axes):
    (mesh,) = [one for one in axes.collections if hasattr(one, "get_coordinates")]
    return mesh.get_coordinates()[:, 0, 1], np.asarray(mesh.get_array()) ** 2


def test_a_window_that_explodes_does_not_flatten_the_others(stored, drawn, tmp_path):
    records = [Record("w", step, {}, histogram(1e6 if step == 10 else 0)) for step in range(20)]
    path = stored(records)
    assert main(["plot", str(path), "--out", str(tmp_path / "plot.png")]) == 0
    assert main(["plot", str(path), "--out", str(tmp_path / "plot.png"), "--clip", "100"]) == 0
    for axes in panels(drawn[0]).values():
        assert -2 < axes.get_ylim()[0] < axes.get_ylim()[1] < 2
        assert "1 windows out of view" in axes.get_xlabel()
    assert panels(drawn[1])["w"].get_ylim()[1] > 1e6


def test_clipping_and_logarithms_go_together(stored, drawn, tmp_path):
    values = [1e-30 if step == 7 else 1e30 if step == 9 else 10.0 ** (step % 3) for step in range(300)]
    path = stored(
        [*(Record("x", k, {}, v) for k, v in enumerate(values)), *(Record("neg", k, {}, -1.0) for k in range(3))]
    )
    assert main(["plot", str(path), "--out", str(tmp_path / "plot.png"), "--log"]) == 0
    low, high = panels(drawn[0])["x"].get_ylim()
    assert 0.5 < low < 1
    assert 100 < high < 200
    assert panels(drawn[0])["neg"].get_yscale() == "linear"
    assert panels(drawn[0])["neg"].get_xlabel() == "step; not logarithmic: nothing is above zero"


def test_panels_of_histograms_begin_where_the_data_begins(stored, drawn, tmp_path):
    path = stored([Record("w", step, {}, histogram()) for step in range(109, 200, 10)])
    assert main(["plot", str(path), "--out", str(tmp_path / "plot.png")]) == 0
    assert [axes.get_xlim() for axes in panels(drawn[0]).values()] == [(99, 199)] * 2


@pytest.mark.parametrize("high", [4, 500])
def test_whole_numbers_have_whole_rows(stored, drawn, tmp_path, high):
    import torch

    from d9d_tracker import Histogram, IntegerBinning

    values = torch.arange(high)
    one = Histogram.from_values(values, IntegerBinning(bins=512))
    path = stored([Record("counts", step, {}, one) for step in range(3)])
    assert main(["plot", str(path), "--out", str(tmp_path / "plot.png")]) == 0
    edges, fractions = heat_map_rows(panels(drawn[0])["counts"])
    assert set(edges % 1) == {0.5}
    widths = np.minimum(edges[1:], high - 0.5) - np.maximum(edges[:-1], -0.5)
    np.testing.assert_allclose(fractions[:, 0], widths / high)
    assert fractions.sum() == pytest.approx(3, abs=0.01)


def test_a_series_of_one_window_is_visible(stored, drawn, tmp_path):
    path = stored([Record("w", 7, {}, histogram())])
    assert main(["plot", str(path), "--out", str(tmp_path / "plot.png")]) == 0
    bands = panels(drawn[0])["w: median, 50, 90 and 98%"].collections[0].get_paths()[0].get_extents()
    assert (bands.width, bands.height > 1) == (1, True)


def test_nan_and_infinities_of_histograms_are_marked_with_their_number(stored, drawn, tmp_path):
    import torch

    from d9d_tracker import Histogram

    broken = Histogram.from_values(torch.tensor([1.0, math.nan, math.inf, -math.inf]))
    dead = Histogram.from_values(torch.tensor([math.nan, math.nan]))
    records = [Record("w", step, {}, broken if step > 5 else histogram()) for step in range(8)]
    path = stored([*records, *(Record("dead", step, {}, dead) for step in range(4))])
    assert main(["plot", str(path), "--out", str(tmp_path / "plot.png")]) == 0
    found = panels(drawn[0])
    for name in ("w", "w: median, 50, 90 and 98%"):
        assert words(found[name]) == ["6 NaN or inf from step 6"]
        (marks,) = [line for line in found[name].lines if line.get_marker() == "v"]
        assert marks.get_xdata().tolist() == [6, 7]
        assert marks.get_color() == panels_module._RED
    assert words(found["dead"]) == ["no finite value in 4 windows", "8 NaN or inf from step 0"]


def test_a_curve_without_a_finite_value_says_so(stored, drawn, tmp_path):
    path = stored([Record("loss", step, {}, math.nan) for step in range(3)])
    assert main(["plot", str(path), "--out", str(tmp_path / "plot.png"), "--log"]) == 0
    assert words(panels(drawn[0])["loss"])[0] == "all 3 values are NaN or infinite"


@pytest.mark.parametrize("place", ["while it is put together", "while it is saved"])
def test_a_series_that_fails_is_named_and_the_others_are_drawn(stored, drawn, tmp_path, monkeypatch, capsys, place):
    draw = panels_module.thinned

    def fails(*arguments):
        raise ZeroDivisionError("no")

    def thinned_or_not(steps, values):
        if values[0] == 2.0 and place == "while it is put together":
            fails()
        return draw(steps, values)

    plot = matplotlib.axes.Axes.plot

    def plot_or_not(axes, *arguments, **keywords):
        lines = plot(axes, *arguments, **keywords)
        if arguments[1][0] == 2.0 and place == "while it is saved":
            lines[0].draw = fails
        return lines

    monkeypatch.setattr(panels_module, "thinned", thinned_or_not)
    monkeypatch.setattr(matplotlib.axes.Axes, "plot", plot_or_not)
    path = stored([Record(name, 1, {}, value) for name, value in (("a", 1.0), ("b", 2.0), ("c", 3.0))])
    assert main(["plot", str(path), "--out", str(tmp_path / "plot.png")]) == 0
    assert "'b' could not be drawn: ZeroDivisionError: no" in capsys.readouterr().out
    found = panels(drawn[-1])
    assert words(found["b"]) == ["could not be drawn"]
    assert [len(found[name].lines) for name in "abc"] == [1, 0, 1]


def test_a_damaged_file_is_named_and_the_others_are_drawn(stored, drawn, tmp_path, capsys):
    good = stored([Record("loss", 1, {}, 1.0)], file="runs/good.jsonl")
    bad = stored([Record("loss", 1, {}, 1.0)], file="runs/bad.jsonl")
    bad.write_bytes(bad.read_bytes() + b'{"type":"scalar"}\n' + record_line(Record("loss", 2, {}, 1.0)))
    assert main(["plot", str(good.parent), "--out", str(tmp_path / "plot.png")]) == 0
    assert "bad.jsonl" in capsys.readouterr().out
    assert list(panels(drawn[0])) == ["loss"]


def test_patterns_that_match_nothing_are_said_with_the_nearest_names(stored, drawn, tmp_path, capsys):
    path = stored([Record(f"layers.{k}.weight", 1, {}, 1.0) for k in range(300)] + [Record("loss", 1, {}, 1.0)])
    options = ["--series", "los", "--series", "loss", "--series", "*.299.bias", "--out", str(tmp_path / "plot.png")]
    assert main(["plot", str(path), *options]) == 0
    said = capsys.readouterr().out
    assert "no series los; of 301 the nearest are: loss" in said
    (line,) = [line for line in said.splitlines() if "*.299.bias" in line]
    assert "layers.299.weight" in line
    assert line.count("layers.") <= 8
    assert list(panels(drawn[0])) == ["loss"]


def test_out_is_written_as_it_says(stored, drawn, image, tmp_path, capsys):
    path = stored([Record("loss", 1, {}, 1.0)])
    assert main(["plot", str(path), "--out", str(tmp_path / "x")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "x")
    assert (tmp_path / "x").read_bytes().startswith(b"\x89PNG")


def test_of_few_values_the_outermost_is_out_of_view_only_if_it_flattens_the_others():
    for values, view in (
        ([1.0, 2, 3, 2, 1, 900], (1, 3, 1)),
        (1 / (1 + np.arange(30.0)), (1 / 30, 1, 0)),
        ([5.0], (5, 5, 0)),
        ([1.0, 1, 1, 1, 9], (1, 9, 0)),  # nothing else to see
    ):
        assert view_of(np.array(values), np.array(values), 98) == view


def test_means_are_around_their_step_and_spikes_stay_spikes():
    steps, values = np.arange(1000), np.arange(1000.0)
    at, means = smoothed(steps, values, 100)
    np.testing.assert_allclose(means, at)
    values = np.ones(1000)
    values[500] = 1e6
    assert smoothed(steps, values, 20)[1].tolist() == [1.0] * 500
    rare = (np.arange(1000) % 4 == 0).astype(float)  # no spikes, though a median would take them for some
    assert smoothed(steps, rare, 200)[1][250] == pytest.approx(0.25, abs=0.02)


def test_means_leave_out_what_is_not_finite():
    values = np.array([1.0, 3.0, math.nan, 5.0, math.inf, 7.0])
    assert smoothed(np.arange(6), values, 2)[1].tolist() == [1, 2, 4, 5, 6, 7]
    np.testing.assert_array_equal(smoothed(np.arange(2), np.array([math.nan, 1.0]), 3)[1], [math.nan, 1])


def test_thinning_keeps_extremes_and_order():
    values = np.random.default_rng(0).normal(size=100_003)
    values[777], values[50_001] = 99.0, -99.0
    steps, kept = thinned(np.arange(len(values)), values)
    assert len(kept) <= 20_100
    assert {99.0, -99.0} <= set(kept)
    assert (np.diff(steps) > 0).all()
    np.testing.assert_array_equal(kept, values[steps])
