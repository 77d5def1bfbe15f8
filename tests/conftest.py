import signal

import pytest

# A shell that runs the tests in the background has SIGINT ignored, which all processes of the tests would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


class Recorded:
    """A tracker over the recording backend, and what arrived there."""

    def __init__(self, **config):
        # Not above: the kernels' tests run where torch, triton and numpy are all there is.
        from d9d_tracker import AccumulatingTracker, AccumulatorConfig
        from d9d_tracker.testing import RecordingTracker

        self.backend = RecordingTracker()
        self.tracker = AccumulatingTracker(self.backend, AccumulatorConfig(**config))

    def open(self, name: str = "run"):
        from d9d_tracker import RunConfig

        return self.tracker.open(RunConfig(name=name))

    @property
    def run(self):
        return self.backend.run


@pytest.fixture
def recorded(tmp_path):
    """A factory of trackers over the recording backend; keyword arguments configure the accumulator."""

    def make(**config) -> Recorded:
        defaults = {"device": "cpu", "backlog_dir": tmp_path / "backlog", "flush_timeout": 10.0}
        return Recorded(**{**defaults, **config})

    return make
