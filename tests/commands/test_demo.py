"""The demo, from its command line to what its backend holds."""

import os
import subprocess
import sys

import pytest

from d9d_tracker.__main__ import main
from tests.run_files import read_run


def test_the_demo_learns_and_tells_where_its_run_is(tmp_path, capsys):
    assert main(["demo", "--provider", "jsonl", "--steps", "60", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.jsonl")
    run, records = read_run(path)
    assert run["name"] == "digits"
    losses = {r.step: r.value for r in records if r.name == "loss" and r.context == {"stage": "train"}}
    assert list(losses) == list(range(60))
    assert losses[59] < losses[0]
    assert {r.step for r in records if r.context == {"stage": "eval"} and r.name == "loss"} == {49, 59}
    gradients = [r for r in records if r.name == "gradients/head.weight"]
    assert [r.value.count for r in gradients] == [50 * 1280, 10 * 1280]
    printed = capsys.readouterr().out.split()
    assert "".join(printed).endswith(f"-md9d_trackershow{path}")
    assert "loss" in printed
    assert " ".join(printed).count("in 2 copies to the host") == 1


def test_the_values_of_the_console_are_lines_where_there_is_no_terminal(tmp_path):
    command = [sys.executable, "-m", "d9d_tracker", "demo", "--provider", "console", "--steps", "20"]
    environment = {**os.environ, "PATH": ""}  # without a compiler, which takes longer
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "digits stage=train loss@19=" in done.stdout


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--provider", "abacus"]])
def test_wrong_choices_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["demo", *arguments])
    assert caught.value.code == 2
    assert arguments[1] in capsys.readouterr().err
