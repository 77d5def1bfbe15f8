"""The backlog is durable, ordered, bounded, and used by one process at a time."""

import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import threading

import pytest
import torch
from lives import content

from d9d_tracker import Histogram
from d9d_tracker.delivery.backlog import Backlog, DamagedError
from d9d_tracker.points import Contents, Points
from d9d_tracker.record import Record


def window(index, size=3):
    records = [Record(f"s{number}", 10 * index + number, {"stage": "train"}, float(number)) for number in range(size)]
    points = Points.of(records)
    return index, points, Contents.of(points, 10 * index)


def test_records_come_back_bit_for_bit(tmp_path):
    values = torch.tensor([math.nan, math.inf, -1e-300, 3.5, 0.0], dtype=torch.float64)
    records = [
        *(Record("scalar", step, {"a": "b", "ä": "\ud800"}, value) for step, value in enumerate(values.tolist())),
        Record("histogram", 7, {}, Histogram.from_values(values)),
        Record("empty", 7, {}, Histogram.from_values(values[:0])),
    ]
    backlog = Backlog(tmp_path, "run", 10**6)
    backlog.put([(4, Points.of(records), Contents.of(Points.of(records), 0))])
    backlog.close()
    assert Backlog(tmp_path, "other", 10**6).contents() == {}
    reopened = Backlog(tmp_path, "run", 10**6)
    assert reopened.contents() == {4: Contents(0, 7, 7, ("empty", "histogram", "scalar"))}
    assert content(reopened.get(4)) == content(records)


def test_what_version_0_2_0_has_kept_is_read(tmp_path):
    histogram = Record("histogram", 7, {"a": "b"}, Histogram.from_values(torch.tensor([1.0, math.inf])), 1.5)
    value = {name: getattr(histogram.value, name) for name in Histogram.__slots__}
    value |= {"edges": value["edges"].tolist(), "counts": value["counts"].tolist()}
    items = [{"name": "scalar", "step": 7, "context": {}, "value": 2.0}, {**histogram._asdict(), "value": value}]
    backlog = Backlog(tmp_path, "run", 10**6)
    with backlog._open() as database:
        row = (0, 7, 7, 2, json.dumps(["histogram", "scalar"]), 1, json.dumps(items))
        database.execute("INSERT INTO windows VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    assert content(backlog.get(0)) == content([Record("scalar", 7, {}, 2.0), histogram])


def test_nothing_is_created_before_it_is_needed(tmp_path):
    backlog = Backlog(tmp_path / "folder", "run", 1000)
    backlog.forget_from(0)
    assert backlog.contents() == {}
    backlog.close()
    assert not (tmp_path / "folder").exists()


def test_every_change_is_synced(tmp_path):
    backlog = Backlog(tmp_path, "run", 10**6)
    backlog.put([window(0)])
    assert backlog._database is not None
    assert backlog._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert backlog._database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL: synced at every commit


def test_many_windows_are_one_change(tmp_path):
    backlog = Backlog(tmp_path, "run", 10**6)
    backlog.put([window(0)])
    assert backlog._database is not None
    statements = []
    backlog._database.set_trace_callback(statements.append)
    backlog.put([window(index) for index in range(1, 20)])
    assert statements.count("COMMIT") == 1
    assert list(backlog.contents()) == list(range(20))


def test_it_is_for_its_owner_alone(tmp_path):
    mask = os.umask(0)
    try:
        (tmp_path / "older.sqlite3").touch(0o644)
        for name in ("run", "older"):
            backlog = Backlog(tmp_path, name, 10**6, {"uri": "https://me:password@host"})
            backlog.put([window(0)])
        files = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    finally:
        os.umask(mask)
    assert len(files) >= 4  # SQLite's own beside it
    assert set(files.values()) == {0o600}


def test_windows_are_forgotten_by_index_and_by_step(tmp_path):
    backlog = Backlog(tmp_path, "run", 10**6)
    for index in (3, 1, 2):
        backlog.put([window(index)])
    assert list(backlog.contents()) == [1, 2, 3]
    backlog.remove(1)
    backlog.forget_from(30)
    assert list(backlog.contents()) == [2]
    with pytest.raises(DamagedError, match="window 3"):
        backlog.get(3)
    backlog.close()
    assert backlog.path.exists()
    reopened = Backlog(tmp_path, "run", 10**6)
    reopened.remove(2)
    reopened.close()
    assert list(tmp_path.iterdir()) == []


def test_the_bound_drops_the_oldest(tmp_path):
    size = len(window(1)[1].dump())
    backlog = Backlog(tmp_path, "run", 3 * size)
    assert [backlog.put([window(index)]) for index in range(1, 6)] == [[], [], [], [1], [2]]
    assert list(backlog.contents()) == [3, 4, 5]
    assert backlog.put([window(6, size=30)]) == [3, 4, 5, 6]  # larger than the bound by itself


def test_a_second_job_is_refused(tmp_path):
    backlog = Backlog(tmp_path, "run", 10**6)
    backlog.put([window(0)])
    program = f"import sqlite3; sqlite3.connect({str(backlog.path)!r}, timeout=0).execute('SELECT * FROM windows')"
    second = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "database is locked" in second.stderr
    with pytest.raises(RuntimeError, match="another job writes to this run"):
        Backlog(tmp_path, "run", 1000).contents()
    backlog.close()
    subprocess.run([sys.executable, "-c", program], check=True)
    assert list(Backlog(tmp_path, "run", 1000).contents()) == [0]


def test_a_vanished_folder_is_made_again_with_all_it_held(tmp_path):
    backlog = Backlog(tmp_path / "folder", "run", 10**6)
    backlog.put([window(0)])
    shutil.rmtree(tmp_path / "folder")
    backlog.put([window(1)])
    backlog.close()
    reopened = Backlog(tmp_path / "folder", "run", 10**6)
    assert list(reopened.contents()) == [0, 1]
    assert content(reopened.get(0)) == content(window(0)[1])


def test_a_damaged_file_is_put_aside_and_said(tmp_path, caplog):
    (tmp_path / "run.sqlite3").write_bytes(b"not a database" * 100)
    backlog = Backlog(tmp_path, "run", 10**6)
    assert backlog.contents() == {}
    backlog.put([window(0)])
    assert "is damaged" in caplog.text
    assert (tmp_path / "run.damaged").read_bytes().startswith(b"not a database")


def in_another_series(payload):
    first = 8 + int.from_bytes(payload[:8], "little")  # behind the header
    return payload[:first] + b"\x07" + payload[first + 1 :]


TORN = {
    "cut": lambda payload: payload[:-3],
    "no header": lambda payload: b"\xff" * len(payload),
    "another series": in_another_series,
    "text of an older version": lambda payload: '[{"name": "a"',
    "nothing": lambda payload: None,
}


@pytest.mark.parametrize("damage", TORN)
def test_a_window_that_cannot_be_read_is_put_aside(damage, tmp_path):
    backlog = Backlog(tmp_path, "run", 10**6)
    backlog.put([window(index) for index in range(3)])
    torn = TORN[damage](window(1)[1].dump())
    with backlog._open() as database:
        database.execute("UPDATE windows SET payload = ? WHERE window = 1", (torn,))
    with pytest.raises(DamagedError, match="window 1"):
        backlog.get(1)
    if torn:
        assert (tmp_path / "run.1.damaged").read_bytes() == (torn if isinstance(torn, bytes) else torn.encode())
    assert content(backlog.get(2)) == content(window(2)[1])


def test_a_file_with_a_damaged_page_is_put_aside_too(tmp_path, caplog):
    backlog = Backlog(tmp_path, "run", 10**6)
    backlog.put([window(index) for index in range(100)])
    backlog.close()
    pages = backlog.path.read_bytes()
    backlog.path.write_bytes(pages[: 4 * 4096] + b"\xff" * (len(pages) - 4 * 4096))
    assert Backlog(tmp_path, "run", 10**6).contents() == {}
    assert "is damaged" in caplog.text
    assert (tmp_path / "run.damaged").exists()


@pytest.mark.parametrize("ending", ["sys.exit(0)", "os._exit(0)"])
def test_a_forked_child_has_no_part_in_it(ending, tmp_path):
    program = f"""
import os, signal, sys
from pathlib import Path
from d9d_tracker.delivery.backlog import Backlog
from d9d_tracker.points import Contents, Points
from d9d_tracker.record import Record
backlog = Backlog(Path({str(tmp_path)!r}), "run", 10**8)
def put(index):
    points = Points.of([Record("a", index, {{}}, float(index))])
    backlog.put([(index, points, Contents.of(points, index))])
put(0)
if os.fork() == 0:
    {ending}
os.wait()
put(1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], timeout=60)
    assert list(Backlog(tmp_path, "run", 10**8).contents()) == [0, 1]


def test_a_full_disk_is_met_before_all_windows_are_made_into_bytes(tmp_path, monkeypatch):
    backlog, dump, dumped = Backlog(tmp_path, "run", 10**9), Points.dump, []
    backlog.put([window(0)])
    backlog._open().execute("PRAGMA max_page_count = 16")
    monkeypatch.setattr(Points, "dump", lambda points: dumped.append(points) or dump(points))
    with pytest.raises(sqlite3.OperationalError, match="full"):
        backlog.put([window(index, size=1000) for index in range(1, 100)])
    assert len(dumped) < 10
    assert list(backlog.contents()) == [0]


def test_a_signal_handler_may_use_it_while_its_own_thread_does(tmp_path, monkeypatch):
    backlog, drop = Backlog(tmp_path, "run", 10**6), Backlog._drop_excess

    def interrupted(*arguments):
        monkeypatch.undo()
        backlog.put([window(1)])
        return drop(*arguments)

    monkeypatch.setattr(Backlog, "_drop_excess", interrupted)
    thread = threading.Thread(target=backlog.put, args=([window(0)],), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert list(backlog.contents()) == [0, 1]
