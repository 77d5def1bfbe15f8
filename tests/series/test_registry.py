"""Series and slots when two threads meet a new one at once."""

import threading

from d9d_tracker.series.registry import Registry
from d9d_tracker.series.series import ScalarSeries


class Overtaken:
    """A lock that another thread had just before, to add the same series."""

    def __init__(self, registry: Registry, series: ScalarSeries):
        self._registry, self._series = registry, series

    def __enter__(self):
        self._registry._add((self._series.name, self._series.context), self._series)

    def __exit__(self, *_):
        pass


def test_a_series_that_another_thread_has_just_added_has_one_slot():
    registry: Registry[ScalarSeries] = Registry(4, "max_scalars", "scalar")
    series = ScalarSeries("loss", (), "mean")
    registry._lock = Overtaken(registry, series)
    assert registry.slot(series) == 0
    assert registry.series == [series]


class Interrupted(list):
    """Series, and a signal handler that logs others right before and after one is added."""

    def __init__(self, handler):
        super().__init__()
        self.handler = handler

    def append(self, series):
        for name in ("before", "after"):
            if series.name == "loss":
                self.handler(ScalarSeries(name, (), "mean"))
            if name == "before":
                super().append(series)


def test_a_signal_handler_may_log_a_new_series_while_its_thread_adds_one():
    registry: Registry[ScalarSeries] = Registry(4, "max_scalars", "scalar")
    registry.series = Interrupted(registry.slot)
    thread = threading.Thread(target=registry.slot, args=(ScalarSeries("loss", (), "mean"),), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    for name in ("before", "loss", "after"):
        assert registry.series[registry.slot(ScalarSeries(name, (), "mean"))].name == name
    assert len(registry.series) == 3
