"""The file: its lines, what a kill or a full disk leaves of it, and who may write to it."""

import errno
import json
import logging
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from d9d_tracker.accumulator import AccumulatingTracker
from d9d_tracker.bare_run import BareRun
from d9d_tracker.base import RunConfig
from d9d_tracker.config import AccumulatorConfig, IntegerBinning
from d9d_tracker.factory import tracker_from_config
from d9d_tracker.points import Points
from d9d_tracker.provider.jsonl import JsonlRun, JsonlTracker, JsonlTrackerConfig
from d9d_tracker.provider.jsonl_format import points_lines, read_record, record_line
from d9d_tracker.record import Histogram, Record
from d9d_tracker.testing import RecordingTracker
from tests.run_files import read_run

PROPERTIES = RunConfig(
    name="a run", description=None, hparams={"lr": math.inf, "deep": [{"x": math.nan}], "n": 3}, started=5.0
)


def strict(line: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(line, parse_constant=refuse)


def tracker_at(folder: Path, run_id: str | None = None) -> JsonlTracker:
    tracker = JsonlTracker.from_config(JsonlTrackerConfig(path=folder, accumulator=None))
    tracker.load_state_dict({"run_id": run_id})
    return tracker


def write_steps(folder: Path, steps: range, run_id: str | None = None) -> Path:
    tracker = tracker_at(folder, run_id)
    with tracker.open(PROPERTIES) as run:
        for step in steps:
            run.set_step(step)
            run.scalar("loss", step / 10)
    return folder / f"{tracker.run_id}.jsonl"


def steps_in(path: Path) -> list[int]:
    return [record.step for record in read_run(path)[1]]


def test_lines_are_as_documented(tmp_path: Path) -> None:
    tracker = tracker_at(tmp_path / "new" / "runs")
    with tracker.open(PROPERTIES) as run:
        run.set_step(3)
        run.set_context({"stage": "train"})
        run.scalar("loss", 0.1)
        run.scalar("lösß", math.nan, {"stage": "eval"})
        run.bins("grad", torch.tensor([1.0, 1.1, 2.0, math.nan, math.inf, 0.0]))
        run.bins("empty", torch.tensor([-math.inf]))
    data = (tmp_path / "new" / "runs" / f"{tracker.run_id}.jsonl").read_bytes()
    assert data.isascii()
    assert data.endswith(b"\n")
    first, *lines = [strict(line) for line in data.splitlines()]
    hparams = {"lr": "inf", "deep": [{"x": "nan"}], "n": 3}
    properties = {"id": tracker.run_id, "name": "a run", "description": None, "hparams": hparams, "time": 5.0}
    assert first == {"type": "run", **properties}
    train = {"step": 3, "context": {"stage": "train"}}
    assert lines[0] == {"type": "scalar", "name": "loss", "value": 0.1, **train}
    assert lines[1] == {"type": "scalar", "name": "lösß", "value": "nan", "step": 3, "context": {"stage": "eval"}}
    expected = Histogram.from_values(torch.tensor([1.0, 1.1, 2.0, 0.0]))
    assert lines[2] == {
        "type": "histogram",
        "name": "grad",
        **train,
        "edges": [-(2.0**-128), 2.0**-128, 1.0, 1.25, 2.0, 2.5],  # a run of empty bins is one
        "counts": [1, 0, 2, 0, 1],
        "count": 4,
        "sum": expected.sum,
        "sum_squares": expected.sum_squares,
        "min": 0.0,
        "max": 2.0,
        "zeros": 1,
        "nan": 1,
        "posinf": 1,
        "neginf": 0,
    }
    empty = {"edges": [0.0], "counts": [], "count": 0, "sum": 0.0, "sum_squares": 0.0, "min": "nan", "max": "nan"}
    counts = {"zeros": 0, "nan": 0, "posinf": 0, "neginf": 1}
    assert lines[3] == {"type": "histogram", "name": "empty", **train, **empty, **counts}
    assert lines[4] == {"type": "end", "time": lines[4]["time"], "outcome": "finished", "error": None}


def bins(histogram: Histogram) -> dict[tuple[float, float], int]:
    """Return the counts of bins that are not empty, by both edges."""
    edges, counts = histogram.edges, histogram.counts
    return {(edges[index], edges[index + 1]): counts[index] for index in np.flatnonzero(counts)}


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    histogram = Histogram.from_values(torch.tensor([1.5, -3.0, math.nan, 0.0]))
    tracker = tracker_at(tmp_path)
    with tracker.open(PROPERTIES) as run:
        run.set_step(1)
        run.histogram("grad", histogram, {"layer": "2"})
        run.scalar("grad", -math.inf, {"layer": "2"})
        run.scalar("loss", 1)
        run.scalar("loss", 2)
    properties, (first, second, third) = read_run(tmp_path / f"{tracker.run_id}.jsonl")
    assert properties["name"] == "a run"
    assert (first.name, first.step, first.context) == ("grad", 1, {"layer": "2"})
    assert isinstance(first.value, Histogram)
    for field in Histogram.__dataclass_fields__.keys() - {"edges", "counts"}:
        np.testing.assert_array_equal(getattr(first.value, field), getattr(histogram, field))
    read, written = (
        {(h.edges[k], h.edges[k + 1]): h.counts[k] for k in np.flatnonzero(h.counts)} for h in (first.value, histogram)
    )
    assert read == written
    assert first.value.counts.dtype == np.int64
    assert second.value == -math.inf
    assert third.value == 2.0


def test_lines_wait_for_a_flush_and_each_flush_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    tracker = tracker_at(tmp_path / "runs")
    with tracker.open(PROPERTIES) as run:
        path = tmp_path / "runs" / f"{tracker.run_id}.jsonl"
        assert set(synced) == {str(path), str(path.parent), str(tmp_path)}
        synced.clear()
        run.scalar("loss", 1)
        assert steps_in(path) == []
        run.flush()
        assert steps_in(path) == [0]
        assert synced == [str(path)]
        run.flush()
        assert synced == [str(path)]
        run.set_step(1)
        run.scalar("loss", 1)
    assert steps_in(path) == [0, 1]
    assert synced == [str(path)] * 2


def test_attaching_appends_and_does_not_double_the_run_line(tmp_path: Path) -> None:
    path = write_steps(tmp_path, range(3))
    assert write_steps(tmp_path, range(3, 5), path.stem) == path
    kinds = [json.loads(line)["type"] for line in path.read_bytes().splitlines()]
    assert kinds == ["run"] + ["scalar"] * 5 + ["end"]
    assert steps_in(path) == [0, 1, 2, 3, 4]


def test_attaching_mends_a_file_cut_at_any_byte(tmp_path: Path) -> None:
    path = write_steps(tmp_path, range(2))
    data = path.read_bytes()
    ends = [position + 1 for position, byte in enumerate(data) if byte == ord("\n")]
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends[:-1])  # the last line says that the run ended
        if whole:
            assert steps_in(path) == list(range(whole - 1))
        write_steps(tmp_path, range(9, 10), path.stem)
        assert path.read_bytes()[: ends[max(whole, 1) - 1]] == data[: ends[max(whole, 1) - 1]]
        assert steps_in(path) == [*range(max(whole, 1) - 1), 9]


def test_a_garbled_end_is_cut_but_damage_within_is_refused(tmp_path: Path) -> None:
    path = write_steps(tmp_path, range(2))
    data = path.read_bytes()
    path.write_bytes(data + b"\0\0\0\n{\n")
    write_steps(tmp_path, range(2, 3), path.stem)
    assert steps_in(path) == [0, 1, 2]
    path.write_bytes(data.replace(b'"step":0', b'"step":'))
    with pytest.raises(ValueError, match=r"line 2 of .* is not JSON"):
        write_steps(tmp_path, range(2, 3), path.stem)
    for other in (b'{"a":1}\n', b"3\n", data + data):
        path.write_bytes(other)
        with pytest.raises(ValueError, match="not one of a run"):
            write_steps(tmp_path, range(2, 3), path.stem)
        assert path.read_bytes() == other


@pytest.mark.parametrize("run_id", ["../other", "a/b", "/etc/x"])
def test_a_state_that_names_no_file_of_the_folder_is_refused(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(ValueError, match="not the name of a file"):
        write_steps(tmp_path / "runs", range(1), run_id)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("step", range(7))
def test_rewind_cuts_before_the_step(tmp_path: Path, step: int) -> None:
    path = write_steps(tmp_path, range(5))
    with tracker_at(tmp_path, path.stem).open(PROPERTIES) as run:
        run.rewind(step)
        assert steps_in(path) == list(range(min(step, 5)))
        run.set_step(step)
        run.scalar("loss", -1)
    assert steps_in(path) == [*range(min(step, 5)), step]


def test_a_step_before_the_end_of_the_file_needs_a_rewind(tmp_path: Path) -> None:
    path = write_steps(tmp_path, range(5))
    with tracker_at(tmp_path, path.stem).open(PROPERTIES) as run:
        run.set_step(4)
        with pytest.raises(ValueError, match=r"step 3 is before step 4.*rewind\(3\)"):
            run.set_step(3)
        run.scalar("loss", 7)
    assert [record.value for record in read_run(path)[1]] == [0.0, 0.1, 0.2, 0.3, 7.0]


@contextmanager
def disk_full_after(size: int) -> Iterator[None]:
    """Let no file grow beyond a size."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_file_whole_and_the_lines_for_later(tmp_path: Path) -> None:
    tracker = tracker_at(tmp_path)
    with tracker.open(PROPERTIES) as run:
        path = tmp_path / f"{tracker.run_id}.jsonl"
        before = path.read_bytes()
        for step in range(10):
            run.set_step(step)
            run.scalar("loss", step)
        with disk_full_after(len(before) + 100), pytest.raises(OSError, match=r"10 lines.*kept in memory") as caught:
            run.flush()
        assert caught.value.errno == errno.EFBIG
        assert caught.value.filename == str(path)
        assert path.read_bytes() == before
        run.set_step(10)
        run.scalar("loss", 10)
    assert steps_in(path) == list(range(11))


def test_a_full_disk_at_the_end_is_told_and_gives_up_the_lock(tmp_path: Path) -> None:
    tracker = tracker_at(tmp_path)
    context = tracker.open(PROPERTIES)
    run = context.__enter__()
    run.scalar("loss", 1)
    with disk_full_after(10), pytest.raises(OSError, match=r"2 lines.*lost with the closing run"):
        context.__exit__(None, None, None)
    write_steps(tmp_path, range(1), tracker.run_id)


def test_a_failure_to_close_does_not_hide_the_exception_of_the_loop(tmp_path: Path) -> None:
    tracker = tracker_at(tmp_path)
    context = tracker.open(PROPERTIES)
    context.__enter__().scalar("loss", 1)
    error = RuntimeError("the loop broke")
    with disk_full_after(10):
        assert not context.__exit__(RuntimeError, error, None)
    assert "2 lines" in error.__notes__[0]


def test_a_folder_that_was_moved_away_and_back(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    tracker = tracker_at(folder)
    with tracker.open(PROPERTIES) as run:
        path = folder / f"{tracker.run_id}.jsonl"
        run.scalar("loss", 0)
        folder.rename(tmp_path / "away")
        with pytest.raises(OSError, match=f"bring the folder back: '{path}'"):
            run.flush()
        assert not folder.exists()
        (tmp_path / "away").rename(folder)
        run.flush()
        assert steps_in(path) == [0]


def test_a_folder_that_was_removed_and_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "runs"
    tracker = tracker_at(folder)
    with tracker.open(PROPERTIES) as run:
        path = folder / f"{tracker.run_id}.jsonl"
        for step in range(3):
            run.set_step(step)
            run.scalar("loss", step)
        run.flush()
        shutil.rmtree(folder)
        run.set_step(3)
        run.scalar("loss", 3)
        with pytest.raises(OSError, match="No such file"):
            run.flush()
        folder.mkdir()
        with disk_full_after(10), pytest.raises(OSError, match="kept in memory"):
            run.flush()
        assert list(folder.iterdir()) == []
        run.flush()
        assert steps_in(path) == [0, 1, 2, 3]
        assert "had vanished and was written anew" in caplog.text
        with pytest.raises(RuntimeError, match="written by another job"):
            write_steps(folder, range(1), tracker.run_id)
        run.set_step(4)
        run.scalar("loss", 4)
    assert steps_in(path) == [0, 1, 2, 3, 4]


def test_another_file_under_the_name_is_left_alone(tmp_path: Path) -> None:
    tracker = tracker_at(tmp_path)
    with tracker.open(PROPERTIES) as run:
        path = tmp_path / f"{tracker.run_id}.jsonl"
        path.unlink()
        path.write_text("mine")
        run.scalar("loss", 0)
        with pytest.raises(OSError, match="Another file has taken the name"):
            run.flush()
        assert path.read_text() == "mine"
        path.unlink()
    assert steps_in(path) == [0]


def test_runs_of_one_tracker_are_files_of_their_own(tmp_path: Path) -> None:
    tracker = tracker_at(tmp_path)
    with tracker.open(PROPERTIES) as first, tracker.open(PROPERTIES) as second:
        first.scalar("a", 1)
        second.scalar("b", 1)
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


CHILD = """
import os, sys, time
from pathlib import Path
from d9d_tracker.accumulator import AccumulatingTracker
from d9d_tracker.base import RunConfig
from d9d_tracker.config import AccumulatorConfig, IntegerBinning
from d9d_tracker.provider.jsonl import JsonlTracker, JsonlTrackerConfig

tracker = JsonlTracker.from_config(JsonlTrackerConfig(path=Path(sys.argv[1]), accumulator=None))
with tracker.open(RunConfig(name="child")) as run:
    run.scalar("loss", 1)
    run.flush()
    run.set_step(1)
    run.scalar("loss", 2)
    child = 0
    if sys.argv[2] == "fork":
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                run.scalar("loss", 3)
            except ValueError:
                os.write(writing, b"x")
                time.sleep(60)
            os._exit(1)
        os.close(writing)
        assert os.read(reading, 1) == b"x"
    if sys.argv[2] == "fork-exit":
        if os.fork() == 0:
            sys.exit()
        os.wait()
    print(tracker.run_id, child, flush=True)
    sys.stdin.read()
"""


@contextmanager
def child_writer(folder: Path, mode: str) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """Run a process that writes a run: one step flushed, one not. Yield it, the run's id and its forked worker."""
    arguments = [sys.executable, "-c", CHILD, str(folder), mode]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout
        run_id, worker = process.stdout.readline().split()
        try:
            yield process, run_id, int(worker)
        finally:
            process.kill()
            if worker != "0":
                os.kill(int(worker), signal.SIGKILL)


def test_another_process_is_refused_until_the_writer_is_gone(tmp_path: Path) -> None:
    with child_writer(tmp_path, "plain") as (process, run_id, _):
        path = tmp_path / f"{run_id}.jsonl"
        with pytest.raises(RuntimeError, match=f"run '{run_id}' .*{path}.* written by another job"):
            write_steps(tmp_path, range(5, 6), run_id)
        process.kill()
        process.wait()
        assert steps_in(path) == [0]
        write_steps(tmp_path, range(5, 6), run_id)
    assert steps_in(path) == [0, 5]


def test_a_worker_that_outlives_its_killed_parent_does_not_hold_the_run(tmp_path: Path) -> None:
    with child_writer(tmp_path, "fork") as (process, run_id, worker):
        process.kill()
        process.wait()
        os.kill(worker, 0)
        write_steps(tmp_path, range(5, 6), run_id)
    assert steps_in(tmp_path / f"{run_id}.jsonl") == [0, 5]


def test_a_forked_process_that_leaves_the_block_writes_nothing(tmp_path: Path) -> None:
    with child_writer(tmp_path, "fork-exit") as (process, run_id, _):
        assert steps_in(tmp_path / f"{run_id}.jsonl") == [0]
        process.communicate("")
    assert steps_in(tmp_path / f"{run_id}.jsonl") == [0, 1]


def test_no_descriptor_is_left_open(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    write_steps(tmp_path, range(1))
    before = len(os.listdir("/proc/self/fd"))
    path = write_steps(tmp_path, range(1))
    with tracker_at(tmp_path, path.stem).open(PROPERTIES) as run:
        assert isinstance(run, BareRun)
        with pytest.raises(RuntimeError):
            write_steps(tmp_path, range(1), path.stem)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_run_of_empty_bins_is_written_as_one(tmp_path: Path) -> None:
    histogram = Histogram.from_values(torch.tensor([1.0, 1.0, 2.0, 1000.0]), IntegerBinning(bins=1001))
    assert len(histogram.counts) == 1000
    tracker = JsonlTracker(JsonlTrackerConfig(path=tmp_path, accumulator=None))
    with tracker.open(RunConfig(name="gaps")) as run:
        run.histogram("h", histogram)
    _, (record,) = read_run(tmp_path / f"{tracker.run_id}.jsonl")
    assert isinstance(record.value, Histogram)
    assert record.value.edges.tolist() == [1, 2, 3, 1000, 1001]
    assert record.value.counts.tolist() == [2, 1, 0, 1]
    again = AccumulatingTracker(RecordingTracker(), AccumulatorConfig())
    with again.open(RunConfig(name="merged")) as run:
        run.histogram("h", record.value)  # its bins are found again
    assert isinstance(again._tracker, RecordingTracker)
    assert again._tracker.run.histograms("h")[0].counts.tolist() == histogram.counts.tolist()


def test_a_rewind_keeps_the_points_of_steps_that_were_over(tmp_path: Path) -> None:
    tracker = tracker_at(tmp_path)
    with tracker.open(PROPERTIES) as run:
        run.write([Record("loss", step, {}, 1.0) for step in (8, 9, 10)])
        run.write([Record("val/acc", 2, {}, 0.5)])
        run.write([Record("loss", 11, {}, 1.0)])
        run.flush()
        run.rewind(10)
        run.write([Record("loss", 10, {}, 2.0)])
    _, records = read_run(tmp_path / f"{tracker.run_id}.jsonl")
    points = [(record.name, record.step, record.value) for record in records]
    assert points == [("loss", 8, 1.0), ("loss", 9, 1.0), ("val/acc", 2, 0.5), ("loss", 10, 2.0)]


def test_the_lines_of_a_window_are_those_of_its_points():
    values = [0.1, -0.0, math.nan, math.inf, -math.inf, 5e-324, 1e308, 3.0]
    tags = {"stage": "träin", "a\n": '"'}
    moments = [(0, None), (0, 1.5), (3, 2.5), (2**60, 1795900312.135717)]
    records = [
        Record(name, step, context, value, time)
        for (step, time), value in zip(moments * 2, values, strict=True)
        for name, context in (("ä", {}), ("loss", tags))
    ]
    histogram = Histogram.from_values(torch.arange(5.0))
    records += [Record("w", step, {}, histogram, None) for step in (0, 2, 3, 2**60, 2**60 + 1)]
    points = Points.of(sorted(records, key=lambda record: record.step))
    assert points_lines(points) == b"".join(map(record_line, points))
    only = Points.of(records[-2:])
    assert points_lines(only) == b"".join(map(record_line, only))


def test_a_subclass_that_wants_every_record_gets_it():
    class Every(JsonlRun):
        def write_record(self, record):
            super().write_record(record)

    class Columns(Every):
        def write_columns(self, points):
            super().write_columns(points)

    assert [kind.__new__(kind)._takes_columns() for kind in (JsonlRun, Every, Columns)] == [True, False, True]


def test_a_window_is_written_as_columns_and_by_points_alike(tmp_path, monkeypatch):
    def write(folder):
        accumulator = AccumulatorConfig(device="cpu", sync_every=4, backlog_dir=folder / "backlog")
        tracker = tracker_from_config(JsonlTrackerConfig(path=folder, accumulator=accumulator))
        with tracker.open(RunConfig(name="run")) as run:
            for step in range(10):
                run.set_step(step)
                run.scalars({"a": float(step), "b": math.inf})
                run.bins("c", torch.arange(step + 1.0))
            run.flush()
            (future,) = run.backend(lambda its: its.scalar("own", 1.0)).values()  # at the step where the backend is
            future.result(10)
        (path,) = folder.glob("*.jsonl")
        return [re.sub(r',"time":[\d.]+', "", line) for line in path.read_text().splitlines()[1:-1]]

    columns = write(tmp_path / "columns")
    assert len(columns) == 10 * 2 + 3 + 1
    assert '"name":"own","step":9,' in columns[-1]
    monkeypatch.setattr(JsonlRun, "_takes_columns", lambda run: False)
    assert write(tmp_path / "points") == columns


def test_edges_without_an_end_leave_the_file_readable() -> None:
    histogram = Histogram(np.array([-math.inf, 0.0, math.inf]), np.array([1, 2]), 3.0, 9.0, -1.0, 2.0, 0, 0, 0, 0)
    fields = strict(record_line(Record("latency", 0, {}, histogram)))
    assert fields["edges"] == ["-inf", 0.0, "inf"]
    assert read_record(fields).value.edges.tolist() == [-math.inf, 0.0, math.inf]
