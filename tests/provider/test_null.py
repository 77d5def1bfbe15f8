"""The backend that drops everything reads nothing either."""

import pytest
import torch

from d9d_tracker.base import RunConfig
from d9d_tracker.provider.null import NullTracker, NullTrackerConfig
from d9d_tracker.record import Histogram


def test_values_are_not_read() -> None:
    # A tensor on the meta device has no data: reading it raises.
    values = torch.empty(3, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        values[0].item()
    with NullTracker.from_config(NullTrackerConfig()).open(RunConfig(name="none")) as run:
        run.set_context({"stage": "train"})
        run.scalar("loss", values[0])
        run.bins("grad", values)
        run.histogram("grad", Histogram.from_values(torch.ones(2)))
        run.flush()
        run.rewind(0)
