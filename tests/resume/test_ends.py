"""What each way of ending leaves behind, before anybody resumes, and that resuming then leaves the whole run."""

import functools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import config_of, content
from pydantic import TypeAdapter

from d9d_tracker import AnyTrackerConfig, RunConfig, tracker_from_config
from d9d_tracker.accumulator import AccumulatingTracker

STEPS, END = 17, 13  # in the middle of a window of five


def open_tracker(folder: Path, provider: str) -> AccumulatingTracker:
    config = config_of(folder, provider)
    config["accumulator"]["flush_timeout"] = 0.5
    tracker = tracker_from_config(TypeAdapter(AnyTrackerConfig).validate_python(config))
    assert isinstance(tracker, AccumulatingTracker)
    return tracker


def train(tracker: AccumulatingTracker, folder: Path, first: int, end: Any = None) -> None:
    with tracker.open(RunConfig(name="run")) as run:
        (folder / "run_id").write_text(str(tracker.run_id))
        for step in range(first, STEPS):
            run.set_step(step)
            run.scalar("loss", step / 3)
            run.bins("values", torch.arange(step + 1.0))
            if step == END - 1 and end is not None:
                end()
                break


def clean() -> None:
    """The loop ends of itself."""


def crash() -> None:
    raise ZeroDivisionError


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def terminate() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def restored_signals():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Tell what a training leaves in a backend that ends of itself."""

    @functools.cache
    def content_of(provider: str) -> Any:
        folder = tmp_path_factory.mktemp("whole")
        train(open_tracker(folder, provider), folder, 0)
        return content(folder, provider)

    return content_of


def scalar_steps(found: Any) -> list[int]:
    """Return the steps of the scalar points that a backend holds."""
    if isinstance(found, dict):
        return [step for step, _ in found.get(("metric", "loss", "{}"), [])]
    return [json.loads(line)["step"] for line in found if '"scalar"' in line]


@pytest.mark.usefixtures("restored_signals")
@pytest.mark.parametrize("provider", ["jsonl", "aim"])
@pytest.mark.parametrize(
    ("end", "error"),
    [(clean, None), (crash, ZeroDivisionError), (interrupt, KeyboardInterrupt), (terminate, SystemExit)],
)
def test_an_orderly_end_leaves_everything(
    provider: str, end: Any, error: Any, whole: Callable[[str], Any], tmp_path: Path
) -> None:
    folder, expected = tmp_path, whole(provider)
    tracker = open_tracker(folder, provider)
    if error is None:
        train(tracker, folder, 0, end)
    else:
        with pytest.raises(error):
            train(tracker, folder, 0, end)
    assert scalar_steps(content(folder, provider)) == list(range(END))
    assert tracker.report.undelivered == 0

    successor = open_tracker(folder, provider)
    successor.load_state_dict(tracker.state_dict())
    train(successor, folder, END)
    assert content(folder, provider) == expected


@pytest.mark.parametrize("provider", ["jsonl", "aim"])
def test_a_backend_that_is_down_at_the_end_leaves_the_rest_in_the_backlog(
    provider: str,
    whole: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder, expected = tmp_path, whole(provider)
    tracker = open_tracker(folder, provider)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    def end() -> None:
        tracker.state_dict()  # what left the device so far is with the backend
        monkeypatch.setattr(os, "pwrite", full)
        from d9d_tracker.provider.aim.tracker import AimRun

        monkeypatch.setattr(AimRun, "_track", full)

    train(tracker, folder, 0, end)
    monkeypatch.undo()
    assert scalar_steps(content(folder, provider)) == list(range(10))
    assert tracker.report.undelivered > 0
    assert "not delivered: " in caplog.text
    assert len(list((folder / "backlog").glob("*.sqlite3"))) == 1

    successor = open_tracker(folder, provider)
    successor.load_state_dict(tracker.state_dict())
    train(successor, folder, END)
    assert content(folder, provider) == expected
    assert list((folder / "backlog").iterdir()) == []


@pytest.mark.parametrize("half_made", ["no version", "empty version", "folder only"])
def test_an_aim_repository_that_a_kill_left_half_made_is_made_whole(half_made: str, tmp_path: Path) -> None:
    import aim

    aim.Repo.from_path(str(tmp_path), init=True)
    if half_made == "folder only":
        shutil.rmtree(tmp_path / ".aim")
        (tmp_path / ".aim").mkdir()
    elif half_made == "empty version":
        (tmp_path / ".aim" / "VERSION").write_text("")
    else:
        (tmp_path / ".aim" / "VERSION").unlink()
    train(open_tracker(tmp_path, "aim"), tmp_path, 0)
    assert scalar_steps(content(tmp_path, "aim")) == list(range(STEPS))
