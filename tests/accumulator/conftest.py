"""The lives are a module that lies beside its tests; a backlog never lies in the working directory."""

import sys
from pathlib import Path

import pytest

from d9d_tracker.delivery import delivery

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Retries follow at once: the tests wait for events, not for clocks."""
    for pause in ("_FIRST_RETRY_SECONDS", "_LAST_RETRY_SECONDS", "_CLOSING_RETRY_SECONDS"):
        monkeypatch.setattr(delivery, pause, 0.001)


@pytest.fixture
def config(tmp_path):
    """Keyword arguments of a small accumulator."""
    return {
        "sync_every": 4,
        "max_scalars": 8,
        "max_histograms": 4,
        "device": "cpu",
        "flush_timeout": 10.0,
        "backlog_dir": tmp_path / "backlog",
    }
