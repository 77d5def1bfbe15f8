"""The line of a run's pace, in the header of ``show``."""

import io

import pytest
from rich.console import Console

from d9d_tracker import JsonlTrackerConfig, RunConfig, tracker_from_config
from d9d_tracker.commands.show import show

GIB = 2.0**30


def shown(folder, series, *patterns):
    with tracker_from_config(JsonlTrackerConfig(path=folder, accumulator=None)).open(RunConfig(name="run")) as run:
        for step, (name, value, context) in enumerate(series):
            run.set_step(step)
            run.scalar(name, value, context)
    console = Console(width=150, record=True, file=io.StringIO())
    show(folder, list(patterns), False, console)
    return console.export_text().splitlines()[0]


@pytest.mark.parametrize("patterns", [(), ("loss",)])
def test_the_last_of_each_is_told(tmp_path, patterns):
    series = [
        ("time/step", 9.0, None),
        ("time/step", 1.2345, None),
        ("time/step", 60.0, {"compiling": "true"}),
        ("tokens/s", 45_123.0, None),
        ("memory/allocated/peak", 71.2 * GIB, None),
        ("memory/host", 3 * GIB, None),
        ("loss", 1.0, None),
    ]
    assert shown(tmp_path, series, *patterns).rstrip().endswith("1.23 s a step, 45.1k tokens/s, 71.2 GiB")


@pytest.mark.parametrize(
    ("series", "words"),
    [
        ({"time/step/mean": 0.0123, "memory/host/max": 2.5 * GIB}, "12.3 ms a step, 2.5 GiB"),
        ({"time/step": 2.5e-5, "images/s": 999.7}, "25 µs a step, 1k images/s"),
        ({"tokens/s": 1.25e9}, "1.25G tokens/s"),
    ],
)
def test_units(tmp_path, series, words):
    line = shown(tmp_path, [(name, value, None) for name, value in series.items()])
    assert line.rstrip().endswith(words)


def test_a_run_without_it_has_no_such_line(tmp_path):
    assert shown(tmp_path, [("loss", 1.0, None)]).rstrip().endswith("step 0")
