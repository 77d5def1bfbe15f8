"""Files of runs, and a console that keeps what is printed."""

import io

import numpy as np
import pytest
from rich.console import Console

from d9d_tracker import RunConfig
from d9d_tracker.provider.jsonl_format import record_line, run_line


@pytest.fixture
def stored(tmp_path):
    """Write records as a run and return the file."""

    def store(records, name="x", hparams=None, file="run.jsonl"):
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        lines = [run_line(name, RunConfig(name=name, hparams=hparams or {})), *map(record_line, records)]
        path.write_bytes(b"".join(lines))
        return path

    return store


@pytest.fixture
def console():
    """Return a console of a stated width, and what was printed on it."""

    def make(width=120):
        return Console(file=io.StringIO(), width=width, color_system=None)

    return make


@pytest.fixture
def image():
    """Read a picture."""
    from matplotlib.image import imread

    def load(path):
        return np.asarray(imread(path))

    return load
