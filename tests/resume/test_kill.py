"""Killed at random moments and restarted, a training leaves what an uninterrupted one leaves: nothing lost or doubled.

``KILLS=200 python -m pytest tests/resume/test_kill.py`` kills 200 times; ``SEED`` begins with other moments.
"""

import functools
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import ForkServer, content, kill_until_done, train, train_until

KILLS = int(os.environ.get("KILLS", "26"))
SEED = int(os.environ.get("SEED", "0"))


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Tell what a training leaves in a backend that nothing interrupts."""

    @functools.cache
    def content_of(provider: str) -> Any:
        folder = tmp_path_factory.mktemp("whole")
        train(server, folder, provider)
        return content(folder, provider)

    return content_of


def _folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    return folder


@pytest.mark.parametrize("provider", ["jsonl", "aim"])
def test_kills_leave_no_trace(provider: str, server: ForkServer, whole: Callable[[str], Any], tmp_path: Path) -> None:
    expected = whole(provider)
    ends: Counter[str] = Counter()
    training = 0
    while ends["SIGKILL"] < KILLS // 2:
        folder = _folder(tmp_path, f"killed{training}")
        ends += kill_until_done(server, folder, provider, SEED + training, KILLS // 2 - ends["SIGKILL"])
        assert content(folder, provider) == expected
        training += 1
    print(f"{provider}: {training} trainings, {dict(ends)}")


# What is planted, and where the life ends in which it is: in the middle of a window, after a checkpoint. Aim overwrites
# what is logged again at its step, so that only a window which ended early shows that the tail was left.
PLANTED = [
    ("jsonl", "fsync_skipped", 15, signal.SIGKILL),
    ("jsonl", "tail_not_cut", 11, signal.SIGTERM),
    ("aim", "tail_not_cut", 11, signal.SIGTERM),
    ("jsonl", "marked_too_early", 8, signal.SIGKILL),
]


@pytest.mark.parametrize(("provider", "fault", "step", "end"), PLANTED)
def test_planted_faults_are_caught(
    provider: str,
    fault: str,
    step: int,
    end: signal.Signals,
    server: ForkServer,
    whole: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    expected = whole(provider)
    faulty, sound = (_folder(tmp_path, name) for name in ("faulty", "sound"))
    train_until(server, faulty, provider, [fault], step, end)
    try:
        train(server, faulty, provider, [fault])
        found = content(faulty, provider)
    except (AssertionError, ValueError) as error:  # the training or the reader has noticed it
        found = error
    assert found != expected

    train_until(server, sound, provider, [], step, end)
    train(server, sound, provider)
    assert content(sound, provider) == expected
