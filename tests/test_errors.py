"""What the tracker raises is of its public classes, whether or not Dynamo has been imported."""

import pickle
import subprocess
import sys
import traceback

import pytest
import torch._dynamo.exc

from d9d_tracker import TrackerError, TrackerTypeError, TrackerValueError
from d9d_tracker.errors import fail


@pytest.mark.parametrize(("kind", "base"), [(TrackerValueError, ValueError), (TrackerTypeError, TypeError)])
def test_an_error_is_its_class_its_base_and_one_that_leaves_a_trace(kind, base):
    with pytest.raises(kind, match="series 'x'") as raised:
        fail(kind, "series 'x'")
    error = raised.value
    assert isinstance(error, (TrackerError, torch._dynamo.exc.UserError))
    assert isinstance(error, base)
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), copied.args) == (type(error), ("series 'x'",))
    assert traceback.format_exception_only(error)[-1] == f"d9d_tracker.errors.{kind.__name__}: series 'x'\n"


def test_an_error_raised_before_dynamo_is_imported_is_the_same_class():
    program = """
import sys
from d9d_tracker import TrackerValueError
early = TrackerValueError("early")
assert "torch._dynamo" not in sys.modules
assert type(early) is TrackerValueError
import torch._dynamo
late = TrackerValueError("late")
assert isinstance(late, TrackerValueError) and isinstance(late, torch._dynamo.exc.UserError)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
