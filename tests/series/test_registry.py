"""Series and slots when two threads meet a new one at once."""

from d9d_tracker.series.registry import Registry, ScalarSeries


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
