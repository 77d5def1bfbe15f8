"""Killed at random moments and restarted, a training leaves what an uninterrupted one leaves: nothing lost or doubled.

``KILLS=200 python -m pytest tests/resume/test_kill.py`` kills 200 times; ``SEED`` begins with other moments.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import ForkServer, content, kill_until_done, train

KILLS = int(os.environ.get("KILLS", "26"))
SEED = int(os.environ.get("SEED", "0"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    server = ForkServer(tmp_path_factory.mktemp("compiled"))
    yield server
    server.close()


def _folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    return folder


@pytest.mark.parametrize("provider", ["jsonl", "aim"])
def test_kills_leave_no_trace(provider: str, server: ForkServer, tmp_path: Path) -> None:
    whole = _folder(tmp_path, "whole")
    train(server, whole, provider)
    expected = content(whole, provider)
    ends: Counter[str] = Counter()
    training = 0
    while ends["SIGKILL"] < KILLS // 2:
        folder = _folder(tmp_path, f"killed{training}")
        ends += kill_until_done(server, folder, provider, SEED + training, KILLS // 2 - ends["SIGKILL"])
        assert content(folder, provider) == expected
        training += 1
    print(f"{provider}: {training} trainings, {dict(ends)}")


# What is planted, where, and the share of lives that end by SIGTERM: Aim overwrites what is logged again at its step,
# so that only a window which ended early shows that the tail was left.
PLANTED = [
    ("jsonl", "fsync_skipped", 0.0),
    ("jsonl", "tail_not_cut", 0.0),
    ("aim", "tail_not_cut", 1.0),
    ("jsonl", "marked_too_early", 0.0),
]


@pytest.mark.parametrize(("provider", "fault", "terminated"), PLANTED)
def test_planted_faults_are_caught(
    provider: str, fault: str, terminated: float, server: ForkServer, tmp_path: Path
) -> None:
    whole, killed = _folder(tmp_path, "whole"), _folder(tmp_path, "killed")
    train(server, whole, provider)
    try:
        kill_until_done(server, killed, provider, SEED, 8, [fault], terminated)
        found = content(killed, provider)
    except (AssertionError, ValueError) as error:  # the training or the reader has noticed it
        found = error
    assert found != content(whole, provider)
