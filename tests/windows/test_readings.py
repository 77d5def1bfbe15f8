"""What instruments have read is merged into a window as it would be one by one, without a loop of Python."""

import sys

import numpy as np

from d9d_tracker.series.series import ScalarSeries
from d9d_tracker.windows.host_window import empty_window
from d9d_tracker.windows.readings import Later, packed, with_readings
from d9d_tracker_kernels.lanes import COUNT, LAST, MAX, SUM, WEIGHT

SERIES = [ScalarSeries("sum", (), "sum"), ScalarSeries("max", (), "max"), ScalarSeries("last", (), "last")]
STEPS = [3, 4, 2**60, 2**60 + 1]


def window(steps):
    return empty_window(0, steps, [1.0] * len(steps), SERIES, [])


def test_numbers_merge_by_step_and_reduction_and_what_cannot_be_read_is_left_out():
    before = window(STEPS)
    before.lanes[0, [SUM, WEIGHT, COUNT], 0] = 10.0, 1.0, 1.0
    readings = [
        (3, packed(0), 2.5),
        (3, packed(0, 1), 3),
        (3, packed(1), -7.0),
        (4, packed(2), 5.0),
        (4, packed(2), Later(lambda: 4.0)),
        (4, packed(0), Later(lambda: None)),
        (4, packed(0), Later(lambda: float("no number"))),
        (4, packed(-1), 100.0),
        (2**60 + 1, packed(-1, 1), 8.0),
        (2, packed(1), 9.0),  # of a thread that had looked at the step when the window before ended
    ]
    merged = with_readings(before, readings)
    assert merged.lanes[:, SUM, 0].tolist() == [15.5, 0.0, 0.0, 0.0]
    assert merged.lanes[:, MAX, 1].tolist() == [9.0, -np.inf, -np.inf, 8.0]
    assert merged.lanes[:, LAST, 2].tolist() == [0.0, 4.0, 0.0, 0.0]
    for lane in (WEIGHT, COUNT):
        assert merged.lanes[:, lane].tolist() == [[3.0, 3.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert before.lanes[0, SUM, 0] == 10.0
    assert with_readings(window([9]), readings[:3]).lanes[:, SUM, 0].tolist() == [5.5]  # one row for all steps
    assert with_readings(before, [(3, packed(0), Later(lambda: None)), (3, packed(-1), 1.0)]).lanes[0, SUM, 0] == 10.0


def test_no_loop_of_python_runs_over_them():
    def calls(times):
        found = []
        readings = [(step, packed(slot), 1.0) for step in STEPS for slot in range(3)] * times
        sys.setprofile(lambda frame, event, argument: found.append(event))
        with_readings(window(STEPS), readings)
        sys.setprofile(None)
        return len(found)

    assert calls(1) == calls(100) > 0
