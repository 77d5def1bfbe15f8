"""The benchmark's command runs and leaves its files. Nothing is timed here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="pip install matplotlib")

from bench.__main__ import main  # after the check for what it imports
from bench.interleave import Spread
from bench.report import Result, Row

_ROOT = Path(__file__).parents[2]


def _bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    done = _bench("--quick", "--only", "d,e,p", "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_json_says_where_and_with_what_it_was_measured(quick_run):
    out, _ = quick_run
    (path,) = out.glob("*.json")
    about = json.loads(path.read_text())
    assert about["device"]
    assert about["date"][:10] in path.name
    assert about["versions"]["torch"]
    assert about["versions"]["d9d_tracker"]
    assert [result["key"] for result in about["results"]] == ["d", "e", "p"]


def test_every_figure_is_a_median_between_its_quartiles(quick_run):
    out, _ = quick_run
    (path,) = out.glob("*.json")
    results = json.loads(path.read_text())["results"]
    spreads = [
        cell for result in results for row in result["rows"] for cell in row["cells"].values() if isinstance(cell, dict)
    ]
    assert len(spreads) > 8
    assert all(spread["low"] <= spread["median"] <= spread["high"] for spread in spreads)


def test_the_panel_is_beside_the_step_without_it(quick_run):
    out, _ = quick_run
    (result,) = [one for one in json.loads(next(out.glob("*.json")).read_text())["results"] if one["key"] == "p"]
    assert [row["name"] for row in result["rows"]] == ["without it, beside itself", "with it"]
    assert result["missing"] == {}


@pytest.mark.slow
def test_norms_of_contenders_also_of_one_that_gets_another_name(tmp_path):
    done = _bench("--quick", "--only", "n", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(next(tmp_path.glob("*.json")).read_text())["results"]
    assert {"nothing", "each norm, each .item()", "d9d_tracker → null"} <= {row["name"] for row in result["rows"]}


def test_the_pace_of_every_contender_is_kept_for_the_plot(quick_run):
    out, _ = quick_run
    (path,) = out.glob("*.json")
    pace = next(result for result in json.loads(path.read_text())["results"] if result["key"] == "d")
    stamps = pace["series"]["stamps"]
    assert {row["name"] for row in pace["rows"]} == set(stamps)
    assert {"nothing", "d9d_tracker"} <= set(stamps)


def test_plots_are_drawn(quick_run):
    out, _ = quick_run
    plots = {path.name: path.read_bytes() for path in out.glob("*/*.png")}
    assert set(plots) == {"slow_backend.png", "flush.png"}
    assert all(content.startswith(b"\x89PNG") for content in plots.values())


def test_table_names_every_contender(quick_run):
    out, printed = quick_run
    (path,) = out.glob("*.json")
    for result in json.loads(path.read_text())["results"]:
        assert result["title"][:40] in printed
        for row in result["rows"]:
            assert row["name"][:30] in printed


@pytest.mark.parametrize(
    ("arguments", "complaint"), [("--only a,z", "no workload z"), ("--quick --readme", "mean nothing")]
)
def test_what_makes_no_sense_is_refused(monkeypatch, capsys, arguments, complaint):
    monkeypatch.setattr(sys, "argv", ["bench", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_what_was_measured_outlives_what_ends_the_next_workload(monkeypatch, tmp_path):
    def ended(plan):
        raise KeyboardInterrupt

    measured = Result("a", "quick to measure", {"ms": ".1f"}, rows=[Row("x", "ours", {"ms": Spread.of([1.0])}, "")])
    monkeypatch.setattr("bench.__main__.WORKLOADS", {"a": lambda plan: measured, "b": ended})
    for setting in ("torch.set_float32_matmul_precision", "torch.set_num_threads", "bench.__main__._quiet"):
        monkeypatch.setattr(setting, lambda *_: None)  # of the whole process, in which other tests run
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--only", "a,b", "--out", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        main()
    (found,) = tmp_path.glob("*-quick-cpu.json")
    assert [result["title"] for result in json.loads(found.read_text())["results"]] == ["quick to measure"]
