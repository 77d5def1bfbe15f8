"""Records of a device and of the host, compared: cells to the last bit, sums as far as float32 goes."""

import pytest
from devices import plugin


def both(on, log, **config):
    found, expected = on(plugin.NAME, log, **config), on("cpu", log, **config)
    assert found.keys() == expected.keys()
    return found, expected


def exact(one):
    cells = one.edges.tolist(), one.counts.tolist(), one.zeros, one.nan, one.posinf, one.neginf
    return *cells, one.min, one.max


def same(found, expected, rel=0.0):
    for key, value in expected.items():
        if isinstance(value, float):
            assert found[key] == pytest.approx(value, rel=rel, nan_ok=True), key
            continue
        one = found[key]
        assert exact(one) == exact(value), key
        size = max(abs(value.min), abs(value.max), 1e-300)
        assert one.sum == pytest.approx(value.sum, rel=1e-6, abs=1e-6 * size * value.count), key
        assert one.sum_squares == pytest.approx(value.sum_squares, rel=1e-5, abs=1e-12 * size * size), key


def close(found, expected):
    for key, value in expected.items():
        one = found[key]
        if isinstance(value, float):
            assert one == pytest.approx(value, rel=1e-5), key
        else:
            assert one.count == value.count, key
            assert (one.min, one.max) == pytest.approx((value.min, value.max), rel=1e-5), key
