"""Files of runs."""

import numpy as np
import pytest
import torch

from d9d_tracker import Histogram, RunConfig
from d9d_tracker.provider.jsonl_format import record_line, run_line


def histogram(shift=0.0):
    """Eight values around a number."""
    return Histogram.from_values(torch.from_numpy(np.linspace(-1, 1, 8) + shift))


@pytest.fixture
def stored(tmp_path):
    """Write records as a run and return the file."""

    def store(records, name="x", hparams=None, file="run.jsonl"):
        path = tmp_path / file
        lines = [run_line(name, RunConfig(name=name, hparams=hparams or {})), *map(record_line, records)]
        path.write_bytes(b"".join(lines))
        return path

    return store
