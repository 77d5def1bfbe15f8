"""What appears on a real (pseudo) terminal, what in the log without one, and what is left behind."""

import contextlib
import io
import logging
import math
import os
import pty
import select
import subprocess
import sys

import pytest
import torch
from rich.console import Console

from d9d_tracker.base import RunConfig
from d9d_tracker.provider.console import ConsoleRun, ConsoleTracker, ConsoleTrackerConfig, bars, sparkline
from d9d_tracker.record import Histogram, Record

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"

SCRIPT = """
import os, sys, threading, time
import torch
from d9d_tracker.base import RunConfig
from d9d_tracker.provider.console import ConsoleTracker, ConsoleTrackerConfig

def end(body):
    tracker = ConsoleTracker.from_config(ConsoleTrackerConfig(accumulator=None))
    with tracker.open(RunConfig(name="[red] run")) as run:
        def write():
            for step in range(300):
                run.set_step(step)
                run.scalar("[bold]loss", 1 / (step + 1), {"stage": "train"})
                run.bins("grad", torch.tensor([0.0, 1.0, float("nan")]))
                if step % 50 == 0:
                    run.flush()
        writer = threading.Thread(target=write)
        writer.start()
        for line in range(20):
            print("printed", line)
        writer.join()
        print("half a line", end="")
        run.flush()
        body()

def loop_breaks():
    raise RuntimeError("the loop broke")

def interrupt():
    os.kill(os.getpid(), 2)
    time.sleep(60)

for body in (lambda: None, loop_breaks, sys.exit, interrupt, lambda: os.kill(os.getpid(), 9)):
    try:
        end(body)
    except BaseException as error:
        print("left by", repr(error), end=" ")
    print("stdout is", type(sys.stdout).__name__, "END")
"""


@pytest.fixture(scope="module")
def ways_out() -> list[str]:
    """What is on a terminal when a run ended well, by an exception, by sys.exit, by Ctrl-C and by SIGKILL."""
    main, terminal = pty.openpty()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "TERM": "xterm-256color",
        "COLUMNS": "100",
        "LINES": "40",
    }
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=terminal, stdout=terminal, stderr=terminal, env=environment
    ) as process:
        os.close(terminal)
        output = b""
        # Reading fails once no process has the terminal open.
        with contextlib.suppress(OSError):
            while select.select([main], [], [], 60)[0]:
                output += os.read(main, 65536)
        process.kill()
    os.close(main)
    return output.decode().split(" END")


@pytest.mark.parametrize("way", range(5))
def test_the_table_stays_and_prints_are_above_it(ways_out: list[str], way: int) -> None:
    output = ways_out[way]
    assert "Traceback" not in output
    for line in range(20):
        assert f"printed {line}\r\n" in output
    if way < 4:
        assert "half a line" in output
    last = output[output.rindex("[red] run") :]
    assert "[bold]loss stage=train" in last.replace("\x1b[2m", "").replace("\x1b[0m", "")
    for shown in ("299", "0.0033333", "n=2", "nan=1", "▁"):
        assert shown in last


@pytest.mark.parametrize("way", range(5))
def test_the_terminal_is_left_usable(ways_out: list[str], way: int) -> None:
    output = ways_out[way]
    assert output.rindex(SHOW_CURSOR) > output.rindex(HIDE_CURSOR)
    assert "\x1b[?1049h" not in output


def test_the_streams_are_given_back_and_the_exception_surfaces(ways_out: list[str]) -> None:
    ends = [output[output.rindex("stdout is") - 40 :] for output in ways_out[:4]]
    assert all("stdout is TextIOWrapper" in end for end in ends)
    for end, error in zip(
        ends[1:], ("RuntimeError('the loop broke')", "SystemExit()", "KeyboardInterrupt()"), strict=True
    ):
        assert f"left by {error}" in end


def open_tracker(log_every: float) -> ConsoleTracker:
    return ConsoleTracker.from_config(ConsoleTrackerConfig(log_every=log_every, accumulator=None))


def test_log_lines_without_a_terminal(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.INFO, logger="d9d_tracker")
    with open_tracker(log_every=1e9).open(RunConfig(name="digits")) as run:
        run.scalar("loss", 0.5, {"stage": "train"})
        run.scalar("acc", math.nan, {"stage": "train"})
        run.set_step(3)
        run.scalar("loss", 0.25, {"stage": "train"})
        run.bins("grad", torch.tensor([2.0, 2.0, math.inf]))
        assert caplog.messages == []
        run.flush()
        train = "digits stage=train loss@3=0.25  acc@0=nan"
        assert caplog.messages == [train, "digits grad@3=[n=2 p05=2 p50=2 p95=2 inf=1]"]
        caplog.clear()
        run.flush()
        assert caplog.messages == []
        run.set_step(4)
        run.scalar("loss", 0.125, {"stage": "train", "part": "head"})
    assert caplog.messages == ["digits part=head stage=train loss@4=0.125"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("level", "warns"), [(logging.WARNING, True), (logging.INFO, False)])
def test_without_a_terminal_and_a_log_it_warns(caplog: pytest.LogCaptureFixture, level: int, warns: bool) -> None:
    caplog.set_level(level, logger="d9d_tracker")
    with ConsoleTracker.from_config(ConsoleTrackerConfig(accumulator=None)).open(RunConfig(name="digits")):
        pass
    assert ("call logging.basicConfig(level=logging.INFO)" in caplog.text) == warns


def test_log_lines_come_with_the_steps_when_it_is_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="d9d_tracker")
    with open_tracker(log_every=0).open(RunConfig(name="digits")) as run:
        for step in range(3):
            run.set_step(step)
            run.scalar("loss", step)
        assert caplog.messages == ["digits loss@0=0", "digits loss@1=1"]


def test_nothing_is_said_where_logging_is_not_configured(capfd: pytest.CaptureFixture[str]) -> None:
    with open_tracker(log_every=0).open(RunConfig(name="digits")) as run:
        run.scalar("loss", 1)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_without_unicode_gets_ascii() -> None:
    with open("/dev/null", "w", encoding="ascii") as file:
        console = Console(file=file, width=100)
        run = ConsoleRun(RunConfig(name="digits"), "digits", ConsoleTrackerConfig(), console)
        for value in (1.0, 2.0, Histogram.from_values(torch.randn(100))):
            run.write_record(Record("grad" if isinstance(value, Histogram) else "loss", 0, {}, value))
        plain = Console(width=100, file=file)
        with plain.capture() as capture:
            plain.print(run.table())
    assert capture.get().isascii()


def test_letters_that_a_terminal_lacks_are_escaped(tmp_path) -> None:
    with open(tmp_path / "terminal", "w", encoding="ascii") as file:
        console = Console(file=file, width=100)
        run = ConsoleRun(RunConfig(name="für"), "digits", ConsoleTrackerConfig(), console)
        run.write_record(Record("größe [µs]", 0, {"ort": "Köln"}, 1.0))
        console.print(run.table())
    shown = (tmp_path / "terminal").read_text()
    assert "f\\xfcr" in shown
    assert "gr\\xf6\\xdfe [\\xb5s] ort=K\\xf6ln" in shown


def test_sparkline() -> None:
    assert sparkline([]) == ""
    assert sparkline([1, 1, 1]) == "▄▄▄"
    assert sparkline([0, 7, 3.5, math.nan, math.inf, 1]) == "▁█▅!!▂"
    assert sparkline([math.nan]) == "!"
    assert sparkline([-1.7e308, 1.7e308]) == "▁█"


def test_bars() -> None:
    assert bars(Histogram.from_values(torch.tensor([math.nan]))) == ""
    assert bars(Histogram.from_values(torch.full((9,), 2.0)), bins=4) == "  █ "
    drawn = bars(Histogram.from_values(torch.tensor([0.0] * 8 + [4.0] * 4 + [8.0])), bins=4)
    assert drawn[0] == "█"
    assert drawn[3] != " "
    assert len(drawn) == 4


def test_no_more_series_are_drawn_than_there_is_room_for() -> None:
    console = Console(file=io.StringIO(), width=100, height=20)
    run = ConsoleRun(RunConfig(name="digits"), "digits", ConsoleTrackerConfig(), console)
    for series in range(1000):
        run.write_record(Record(f"series {series}", 0, {}, 1.0))
    assert run.table().row_count == 20
    run.close()
    assert run.table().row_count == 1000
