"""A terminal shows what runs hold, in tables."""

import io
import math
import os
import pty
import select
import subprocess
import sys
import time

import pytest
from rich.console import Console

from d9d_tracker import Record
from d9d_tracker.__main__ import main
from d9d_tracker.commands import show as show_module
from d9d_tracker.commands.labels import differing
from d9d_tracker.commands.show import show
from d9d_tracker.provider.jsonl_format import hparams_line, record_line
from d9d_tracker.reading import read
from tests.reading.conftest import histogram


def test_one_run_is_a_table_of_its_series(stored, console):
    records = [Record("loss", step, {"stage": "train"}, 8.0 - step) for step in range(8)]
    records += [Record("weights", 5, {}, histogram(3))]
    out = console()
    show(stored(records, name="big", hparams={"model": {"depth": 3}}), [], False, out)
    text = out.file.getvalue()
    assert all(words in text for words in ("big", "step 7", "model.depth=3"))
    (loss,) = (line.split() for line in text.splitlines() if "loss" in line)
    assert loss == ["loss", "stage=train", "8", "1", "1", "8", "█▇▆▅▄▃▂▁"]
    (weights,) = (line.split() for line in text.splitlines() if "weights" in line)
    assert weights[:7] == ["weights", "1", "3", "±", "0.65", "2", "4"]


def test_several_runs_are_a_table_of_runs_with_what_differs(stored, console):
    for lr in (0.1, 0.2):
        path = stored([Record("loss", 3, {}, lr)], name="n", hparams={"lr": lr, "seed": 0}, file=f"{lr}.jsonl")
    out = console()
    show(path.parent, [], False, out)
    rows = [line.split() for line in out.file.getvalue().splitlines() if ".jsonl" in line]
    assert rows == [[f"{lr}.jsonl", "n", "1", "1", "3", f"lr={lr}"] for lr in (0.1, 0.2)]
    show(path.parent, ["lo*"], False, out)
    assert out.file.getvalue().count("loss") == 2
    assert differing(read(path.parent)) == [{"lr": 0.1}, {"lr": 0.2}]


def test_layer_2_stands_before_layer_10(stored, console):
    names = ["layers.2.weight", "layers.10.bias", "layers.10", "a1"]
    out = console()
    show(stored([Record(name, 0, {}, 1.0) for name in reversed(names)]), [], False, out)
    words = out.file.getvalue().split()
    assert [word for word in words if word in names] == ["a1", "layers.2.weight", "layers.10", "layers.10.bias"]


def test_what_is_not_finite_is_said_with_its_first_step(stored, console):
    records = [Record("loss", step, {}, math.nan if step >= 4 else 1.0) for step in range(6)]
    out = console()
    show(stored(records), [], False, out)
    assert "! not finite from 4" in " ".join(out.file.getvalue().split())


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_tables_fit_the_terminal(stored, console, width):
    records = [Record(f"gradients/layers.{k}.weight", 5, {"stage": "train"}, histogram(k)) for k in range(3)]
    out = console(width)
    show(stored([*records, Record("loss", 5, {}, 1.23456789e-7)]), [], False, out)
    assert max(map(len, out.file.getvalue().splitlines()[1:])) <= width  # the first has the path, whole
    assert "1.2346e-07" in out.file.getvalue()


def test_names_that_are_not_there_and_empty_runs_are_said(stored, console):
    out = console()
    show(stored([Record("loss", 1, {}, 1.0)]), ["acc*"], False, out)
    assert "no series acc*; there are: loss" in out.file.getvalue()
    show(stored([]), [], False, out)
    assert "no points yet" in out.file.getvalue()


def test_what_is_no_run_is_said_in_one_line(tmp_path, capsys):
    assert main(["show", str(tmp_path)]) == 1
    assert "holds no run" in capsys.readouterr().err
    assert main(["show", str(tmp_path / "none")]) == 1
    assert "No such file" in capsys.readouterr().err


def test_file_names_and_paths_are_never_cut(stored, console):
    for k in range(2):
        file = f"runs/20261129-15512{k}-0123456789abcdef0123456789abcdef0123456789.jsonl"
        hparams = {"model.hidden_size": 1000 + k, "optimizer.learning_rate": 0.1 + k}
        path = stored([Record("loss", 1, {}, 1.0)], name="a long name of a run", hparams=hparams, file=file)
    out = console(80)
    show(path.parent, [], False, out)
    first_column = "".join(line[:24].split("  ")[0].strip() for line in out.file.getvalue().splitlines())
    assert all(path.name in first_column for path in path.parent.glob("*"))
    out = console(80)
    show(path, [], False, out)
    assert str(path) in out.file.getvalue().splitlines()[0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"type":"scalar"}\n', "a line lacks 'value'"),
        (b'{"type":"hparams","hparams":{"lr"\n' + hparams_line({}), "a line is not JSON but others follow"),
    ],
)
def test_a_damaged_file_is_named_and_the_others_are_shown(stored, console, line, words):
    path = stored([Record("loss", 1, {}, 0.5)], file="runs/good.jsonl")
    bad = stored([Record("loss", 1, {}, 1.0)], file="runs/bad.jsonl")
    bad.write_bytes(bad.read_bytes() + line)
    for patterns in ([], ["loss"]):
        out = console(200)
        show(path.parent, patterns, False, out)
        assert f"bad.jsonl: {words}; mend or remove that line" in " ".join(out.file.getvalue().split())
        assert "good.jsonl" in out.file.getvalue()
    assert "0.5" in out.file.getvalue()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1234567.0, "1,234,567"),
        (33554432000.0, "33,554,432,000"),
        (123456.7, "123,457"),
        (0.123456, "0.12346"),
        (7.0, "7"),
    ],
)
def test_steps_and_counts_of_tokens_can_be_read(stored, console, value, words):
    out = console()
    show(stored([Record("tokens", 1, {}, value)]), [], False, out)
    (row,) = [line.split() for line in out.file.getvalue().splitlines() if "tokens" in line]
    assert row[2] == words


@pytest.mark.parametrize("kind", ["one run", "many runs", "series of many runs"])
def test_where_there_is_too_little_room_what_changed_last_is_shown(stored, kind):
    runs = {"one run": 1, "many runs": 30, "series of many runs": 3}[kind]
    for k in range(runs):
        records = [Record(f"series {n:02}", n, {}, 1.0) for n in range(50)]
        path = stored(records, hparams={"lr": 1}, file=f"runs/{k:02}.jsonl")
        os.utime(path, (k, k))
    height = 24 if kind == "many runs" else 40
    out = Console(file=io.StringIO(), width=80, height=height, color_system=None)
    picture = show_module._now(path.parent, ["series *"] if kind == "series of many runs" else [], out)
    out.print(picture)
    text = out.file.getvalue()
    assert len(text.splitlines()) <= height
    assert "more" in text
    assert ("series 49" in text) == (kind != "many runs")
    assert "series 00" not in text
    if kind == "many runs":
        assert "29.jsonl" in text
        assert "00.jsonl" not in text


def test_following_waits_for_a_run(stored, tmp_path):
    path = stored([Record("loss", 1, {}, 0.123)], file="elsewhere/run.jsonl")
    folder = tmp_path / "runs"
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "d9d_tracker", "show", str(folder), "--follow"]
    with subprocess.Popen(command, stdin=child, stdout=child, stderr=child, start_new_session=True) as process:
        os.close(child)
        try:
            assert "waiting for a run" in read_until(parent, "waiting for a run")
            path.parent.rename(folder)
            assert "0.123" in read_until(parent, "0.123")
            os.kill(process.pid, 2)
            assert process.wait(60) == 0
        finally:
            process.kill()
            os.close(parent)


def test_hyperparameters_in_which_only_some_runs_differ_are_shown(stored):
    for k, lr in enumerate((1, 1, 2)):
        path = stored([], hparams={"lr": lr, "seed": 0}, file=f"runs/{k}.jsonl")
    assert differing(read(path.parent)) == [{"lr": 1}, {"lr": 1}, {"lr": 2}]


def test_following_shows_what_comes(stored):
    path = stored([Record("loss", 1, {}, 0.123)])
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "d9d_tracker", "show", str(path), "--follow"]
    with subprocess.Popen(command, stdin=child, stdout=child, stderr=child, start_new_session=True) as process:
        os.close(child)
        try:
            assert "0.123" in read_until(parent, "0.123")
            with path.open("ab") as file:
                file.write(record_line(Record("loss", 77, {}, 0.456)))
            assert "0.456" in read_until(parent, "0.456")
            os.kill(process.pid, 2)
            assert process.wait(60) == 0
        finally:
            process.kill()
            os.close(parent)


def test_what_comes_while_it_is_read_is_shown(stored, console, monkeypatch):
    path = stored([Record("loss", 1, {}, 0.123)])
    pauses = iter([None])

    def read_slowly(place):
        runs = [(run, run.load()) for run in read(place)]
        with path.open("ab") as file:
            file.write(record_line(Record("loss", 2, {}, 0.456)))
        for run, loaded in runs:
            run.load = lambda *_, loaded=loaded: loaded
        monkeypatch.setattr(show_module, "read", read)
        return [run for run, _ in runs]

    def pause(seconds):
        if next(pauses, "over") == "over":
            raise KeyboardInterrupt

    monkeypatch.setattr(show_module, "read", read_slowly)
    monkeypatch.setattr(show_module.time, "sleep", pause)
    out = console()
    show(path, [], True, out)
    assert "0.456" in out.file.getvalue()


def read_until(terminal, words, seconds=60):
    text, deadline = "", time.monotonic() + seconds
    while words not in text and select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
        text += os.read(terminal, 65536).decode(errors="replace")
    return text


def test_a_terminal_of_plain_letters_gets_plain_letters(stored):
    out = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), width=120)
    show(stored([Record("loss", step, {}, float(step)) for step in range(5)]), [], False, out)
    out.file.flush()
    out.file.buffer.getvalue().decode("ascii")


def test_letters_that_a_terminal_lacks_are_escaped(stored, monkeypatch):
    path = stored([Record("損失", 0, {"file": "\udce9"}, 1.0), Record("weights", 0, {}, histogram())])
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["show", str(path)]) == 0
    out.flush()
    printed = out.buffer.getvalue().decode("ascii")
    assert all(words in printed for words in ("\\u640d\\u5931", "file=\\udce9", "\\xb1"))
