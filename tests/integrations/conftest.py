"""Runs of tiny real trainings, read back from their files."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from forks import Forks

from d9d_tracker import AccumulatorConfig, Histogram, JsonlTrackerConfig
from tests.run_files import read_run


@pytest.fixture(scope="module")
def forks(request):
    """Processes that are forked from one which has imported the framework's oracle."""
    name = request.module.__name__.rpartition(".")[2].removeprefix("test_")
    forks = Forks(f"{name.removesuffix('_oracle')}_oracle")
    yield forks
    forks.close()


@pytest.fixture
def config(tmp_path):
    """Configuration of a backend that can be read back."""
    accumulator = AccumulatorConfig(device="cpu", sync_every=4, backlog_dir=tmp_path / "backlog", flush_timeout=20.0)
    return JsonlTrackerConfig(path=tmp_path / "runs", accumulator=accumulator)


@pytest.fixture
def stored(tmp_path):
    """Read the only run: its first line, and its points by name, context and step."""

    def load(folder="runs"):
        (path,) = (tmp_path / folder).glob("*.jsonl")
        run, records = read_run(path)
        points = {}
        for record in records:
            value = record.value.count if isinstance(record.value, Histogram) else record.value
            points.setdefault((record.name, *sorted(record.context.items())), {})[record.step] = value
        return run, points

    return load
