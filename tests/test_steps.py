"""Steps are whatever is an index, within int64."""

import re

import numpy as np
import pytest
import torch

from d9d_tracker.errors import TrackerTypeError, TrackerValueError
from d9d_tracker.steps import as_step


@pytest.mark.parametrize("step", [0, 2**63 - 1, np.int32(7)])
def test_an_index_is_a_step(step):
    found = as_step("set_step", step)
    assert (found, type(found)) == (int(step), int)


@pytest.mark.parametrize("step", [True, 1.0, "1", None, torch.tensor(1)])
def test_what_is_no_index_is_refused(step):
    words = re.escape(f"set_step({step!r}): a step is an int, not {type(step).__name__}; pass int(step)")
    with pytest.raises(TrackerTypeError, match=words):
        as_step("set_step", step)


@pytest.mark.parametrize("step", [-1, 2**63])
def test_what_does_not_fit_is_refused(step):
    with pytest.raises(TrackerValueError, match=re.escape(f"log_at({step}): a step is between 0 and")):
        as_step("log_at", step)
