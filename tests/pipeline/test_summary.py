"""The end of a run says where it is and what became of it, on a terminal."""

import io
import math
import sys

import pytest
import rich
from rich.console import Console

from d9d_tracker import AccumulatorConfig, JsonlTrackerConfig, MultiConfig, Record, RunConfig, tracker_from_config
from d9d_tracker.delivery.report import DeliveryReport, NonFinite, RunReport
from d9d_tracker.pipeline.summary import last_values, print_summary


@pytest.fixture
def terminal(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=200, color_system=None)
    monkeypatch.setattr(rich, "_console", console)
    return console


def run_once(config, path, **options):
    accumulator = AccumulatorConfig(**config, **options)
    tracker = tracker_from_config(JsonlTrackerConfig(path=path, accumulator=accumulator))
    with tracker.open(RunConfig(name="large")) as run:
        for step in range(3):
            run.set_step(step)
            run.scalar("loss", math.nan if step == 2 else step)
    return tracker


def test_a_terminal_gets_it(terminal, config, tmp_path):
    tracker = run_once(config, tmp_path / "runs")
    text = " ".join(terminal.file.getvalue().split())
    assert text.startswith("large loss nan points 3 written, in 1 copy")
    assert "not finite loss: nan at step 2" in text
    assert f"-m d9d_tracker show {tmp_path / 'runs' / tracker.run_id}.jsonl" in text


def test_nothing_is_printed_elsewhere_or_if_it_is_not_wanted(terminal, config, tmp_path, capsys, monkeypatch):
    run_once(config, tmp_path / "runs", summary=False)
    assert terminal.file.getvalue() == ""
    monkeypatch.setattr(rich, "_console", None)
    run_once(config, tmp_path / "runs")
    assert capsys.readouterr().out == ""


def test_each_of_several_backends_says_how_it_is_opened(terminal, config, tmp_path):
    backends = [JsonlTrackerConfig(path=tmp_path / name) for name in ("here", "there")]
    tracker = tracker_from_config(MultiConfig(trackers=backends, accumulator=AccumulatorConfig(**config)))
    with tracker.open(RunConfig(name="large")) as run:
        run.scalar("loss", 1.0)
    lines = [line for line in terminal.file.getvalue().splitlines() if line.strip().startswith("open ")]
    assert len(lines) == 2
    assert all(str(tmp_path / name) in line for name, line in zip(("here", "there"), lines, strict=True))


def test_the_command_that_opens_a_run_can_be_pasted():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    command = f"python -m d9d_tracker show {'/scratch/project' * 8}/20261129-155121-0123456789abcdef.jsonl"
    print_summary(console, "run", {"": command}, RunReport(), [], 1)
    assert f"open  {command}" in [line.strip() for line in console.file.getvalue().splitlines()]


def test_what_was_lost_is_said():
    part = DeliveryReport(delivered=5, dropped=2, undelivered=3)
    part.refused.update({"loss": 4, "lr": 1})
    report = RunReport({"": part})
    report.unread, report.without_slot = 6, 7
    report.nonfinite.append(NonFinite("loss", {}, 1, 1, "nan", ranks=(0, 1, 2)))
    console = Console(file=io.StringIO(), width=200)
    print_summary(console, "large", {}, report, [], 1)
    text = " ".join(console.file.getvalue().split())
    for words in (
        "refused 5 by a backend: loss (4), lr (1)",
        "dropped 2 that",
        "waiting 3 in the backlog",
        "lost 6 windows",
        "without a slot 7:",
        "not finite loss: nan at step 1 on ranks 0-2",
    ):
        assert words in text


def test_the_last_values_are_those_of_each_series():
    records = [Record(name, step, {"k": "v"}, float(step)) for step in range(3) for name in "ab"]
    assert {name: record.value for name, record in last_values(records).items()} == {"a k=v": 2.0, "b k=v": 2.0}


class AngryError(Exception):
    def __str__(self):
        raise ValueError("no words")


def test_a_terminal_that_is_gone_and_an_error_without_words_end_nothing(
    terminal, config, tmp_path, caplog, monkeypatch
):
    def broken(text):
        raise BrokenPipeError

    terminal.file.write = broken
    with (tmp_path / "stdout").open("w") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)  # rich redirects it
        tracker = run_once(config, tmp_path / "runs")
        assert tracker.report.delivered == 3
        run = tracker.start(RunConfig(name="again"))
        run.scalar("loss", 1.0)
        run.finish(AngryError())
    assert tracker.report.delivered == 1
    assert caplog.text.count("the end of the run could not be told") == 2


def test_letters_that_a_terminal_lacks_are_escaped(tmp_path):
    with open(tmp_path / "terminal", "w", encoding="ascii") as file:
        print_summary(
            Console(file=file, width=80), "für", {"": "show Köln"}, RunReport(), [Record("µs", 0, {}, 1.0)], 1
        )
    shown = (tmp_path / "terminal").read_text()
    assert all(words in shown for words in ("f\\xfcr", "K\\xf6ln", "\\xb5s"))
