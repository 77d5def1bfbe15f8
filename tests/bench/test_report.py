import pytest

from bench.interleave import Spread
from bench.report import Row, losses, refresh, text


def test_a_spread_is_shown_with_its_quartiles():
    assert text(Spread(1.234, 1.0, 2.0), ".2f") == "1.23 (1.00 to 2.00)"
    assert text(None, ".2f") == "-"


def test_losing_is_said_only_where_quartiles_do_not_overlap():
    rows = [
        Row("ours", "ours", {"ratio": Spread(1.5, 1.4, 1.6)}),
        Row("faster", "package", {"ratio": Spread(1.2, 1.1, 1.3)}),
        Row("about as fast", "package", {"ratio": Spread(1.4, 1.3, 1.5)}),
        Row("nothing", "baseline", {"ratio": Spread(1.0, 1.0, 1.0)}),
    ]
    assert losses(rows, "ratio", "ours", "Why.") == ["Here: faster beat ours (ratio). Why."]
    assert losses(rows, "ratio", "ours", "Why.", highest=True) == []


def test_refreshing_replaces_one_section_only(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- cpu -->\nold\n<!-- end cpu -->\n<!-- gpu -->\nkept\n<!-- end gpu -->\nb\n")
    refresh(readme, "cpu", "new")
    assert readme.read_text() == "a\n<!-- cpu -->\n\nnew\n\n<!-- end cpu -->\n<!-- gpu -->\nkept\n<!-- end gpu -->\nb\n"


def test_a_missing_section_is_refused(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("nothing here\n")
    with pytest.raises(ValueError, match="no section"):
        refresh(readme, "cpu", "new")
