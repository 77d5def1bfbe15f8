"""A run in a file gives its series as NumPy, also while it is written and after it was resumed."""

import sys

import numpy as np
import pytest

import d9d_tracker
from d9d_tracker import AccumulatorConfig, JsonlTrackerConfig, Record, RunConfig, tracker_from_config
from d9d_tracker.provider.jsonl_format import hparams_line, record_line
from tests.reading.conftest import histogram


@pytest.fixture
def run(stored):
    records = [Record("loss", step, {"stage": stage}, step / 2, step + 0.5) for step in range(3) for stage in "ab"]
    records += [Record("lr", 7, {}, 0.1), Record("weights", 2, {}, histogram(2)), Record("weights", 4, {}, histogram())]
    (run,) = d9d_tracker.read(stored(records, name="x", hparams={"lr": 0.1}))
    return run


def test_series_are_listed(run):
    assert [(s.kind, s.name, s.context, s.points, s.first, s.last) for s in run.series()] == [
        ("scalar", "loss", {"stage": "a"}, 3, 0, 2),
        ("scalar", "loss", {"stage": "b"}, 3, 0, 2),
        ("scalar", "lr", {}, 1, 7, 7),
        ("histogram", "weights", {}, 2, 2, 4),
    ]


def test_series_are_arrays(run):
    loss = run.scalars("loss", {"stage": "b"})
    assert (loss.steps.dtype, loss.values.dtype, loss.times.dtype) == (np.int64, np.float64, np.float64)
    assert (loss.steps.tolist(), loss.values.tolist(), loss.times.tolist()) == ([0, 1, 2], [0, 0.5, 1], [0.5, 1.5, 2.5])
    assert run.scalars("lr").values.tolist() == [0.1]
    weights = run.histograms("weights")
    assert weights.steps.tolist() == [2, 4]
    assert [value.mean for value in weights.values] == pytest.approx([2.0, 0.0])
    np.testing.assert_array_equal(weights.quantiles([0.0, 1.0]), [[1.0, -1.0], [3.0, 1.0]])


def test_what_is_not_there_is_named_with_what_is(run):
    with pytest.raises(KeyError, match=r"several contexts.*'stage': 'a'"):
        run.scalars("loss")
    with pytest.raises(KeyError, match=r"no histogram 'loss'.*scalar 'lr', histogram 'weights'"):
        run.histograms("loss")
    with pytest.raises(KeyError, match="no scalar 'loss'"):
        run.scalars("loss", {"stage": "c"})


def test_the_last_line_of_a_step_counts_and_steps_are_in_order(stored):
    steps = [0, 2, 1, 2, 0]
    (run,) = d9d_tracker.read(stored([Record("loss", step, {}, float(k)) for k, step in enumerate(steps)]))
    loss = run.scalars("loss")
    assert (loss.steps.tolist(), loss.values.tolist()) == ([0, 1, 2], [4.0, 2.0, 3.0])
    assert run.series()[0].points == 3


def test_records_come_in_the_order_of_steps(run):
    records = list(run.records())
    assert [record.step for record in records] == [0, 0, 1, 1, 2, 2, 2, 4, 7]
    assert records[0] == Record("loss", 0, {"stage": "a"}, 0.0, 0.5)
    assert records[-1].time is None


def test_many_series_are_loaded_by_their_names(run):
    assert [series.name for series in run.load()] == ["loss", "loss", "lr", "weights"]
    assert [series.name for series in run.load("w*", "lr")] == ["lr", "weights"]


def test_pandas_gets_a_row_a_point(run):
    pytest.importorskip("pandas", reason="pip install pandas")
    frame = run.to_pandas("l*")
    assert frame.columns.tolist() == ["name", "step", "value", "time", "stage"]
    assert frame[frame.stage == "b"].value.tolist() == [0, 0.5, 1]
    assert len(frame) == 7


def test_tags_that_are_called_like_a_column_keep_a_column_of_their_own(stored):
    pytest.importorskip("pandas", reason="pip install pandas")
    (run,) = d9d_tracker.read(stored([Record("loss", 3, {"step": "warm", "value": "x"}, 0.5)]))
    (row,) = run.to_pandas().to_dict("records")
    assert (row["step"], row["value"], row["context.step"], row["context.value"]) == (3, 0.5, "warm", "x")


def test_without_pandas_the_extra_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'd9d_tracker\[pandas\]'"):
        run.to_pandas()


def test_hyperparameters_that_came_later_are_read(stored):
    path = stored([Record("loss", 0, {}, 1.0)], hparams={"lr": 1, "a": 1})
    path.write_bytes(path.read_bytes() + hparams_line({"lr": 2}) + hparams_line({"b": 3}))
    assert d9d_tracker.read(path)[0].hparams == {"lr": 2, "a": 1, "b": 3}


def test_a_folder_gives_its_runs_and_names_what_is_none(stored, caplog):
    for name in ("b", "a"):
        path = stored([], name=name, file=f"{name}.jsonl")
    (path.parent / "other.jsonl").write_text('{"a": 1}\n')
    (path.parent / "folder.jsonl").mkdir()  # as little to be read as a file of somebody else
    assert [run.name for run in d9d_tracker.read(str(path.parent))] == ["a", "b"]
    assert "left out: [Errno 21] Is a directory" in caplog.text
    assert "other.jsonl is not the file of a run" in caplog.text
    with pytest.raises(ValueError, match="not the file of a run"):
        d9d_tracker.read(path.parent / "other.jsonl")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        d9d_tracker.read(path.parent / "..")


def test_a_running_run_is_read_up_to_its_last_flush(tmp_path):
    config = JsonlTrackerConfig(path=tmp_path, accumulator=AccumulatorConfig(device="cpu"))
    with tracker_from_config(config).open(RunConfig(name="x")) as run:
        for step in range(5):
            run.set_step(step)
            run.scalar("loss", step)
        run.flush()
        (stored,) = d9d_tracker.read(tmp_path)
        assert stored.scalars("loss").values.tolist() == [0, 1, 2, 3, 4]
    assert stored.path.read_bytes().count(record_line(Record("loss", 4, {}, 4.0))[:40]) == 1


def test_tags_that_are_called_like_columns_stand_beside_them(stored):
    pytest.importorskip("pandas", reason="pip install pandas")
    path = stored([Record("loss", step, {"step": "a", "value": "b"}, 0.5) for step in range(2)])
    frame = d9d_tracker.read(path)[0].to_pandas()
    assert frame.columns.tolist() == ["name", "step", "value", "time", "context.step", "context.value"]
    assert (frame.step.tolist(), frame.value.tolist()) == ([0, 1], [0.5, 0.5])
    assert (frame["context.step"].tolist(), frame["context.value"].tolist()) == (["a"] * 2, ["b"] * 2)
