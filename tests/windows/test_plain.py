"""Tables of series travel whatever their names and tags hold."""

import pytest

from d9d_tracker.config import LinearBinning
from d9d_tracker.series.series import HistogramSeries, ScalarSeries
from d9d_tracker.windows.in_transit import SERIES


@pytest.mark.parametrize("text", ["a", "ä", 'a"\\\n\0', "损失", "file \udcff"])
def test_any_text_comes_back(text):
    context = ((text, text), ("rank", "0"))
    scalars = [ScalarSeries(text, context, "max", 2.0, spread=True, sums=((text, -1),))]
    table = [2**62], [0.5], scalars, [HistogramSeries(text, (), LinearBinning(low=0, high=1, bins=3))]
    found = SERIES.load(SERIES.dump(table))
    assert found == tuple(table)
    assert found[2][0].sums == scalars[0].sums


def test_what_is_none_is_a_value_error():
    for data in (b"", b"{", b"[1]"):
        with pytest.raises(ValueError, match=r"Expecting|3 validation errors|validation error"):
            SERIES.load(data)
