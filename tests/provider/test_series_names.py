"""Names that are made for parts of a series do not meet those of others."""

from d9d_tracker.provider.series_names import SeriesNames


def test_whoever_comes_second_is_written_apart_and_said_once(caplog):
    for first, second in ((("act", "/mean"), ("act/mean", "")), (("act/mean", ""), ("act", "/mean"))):
        names = SeriesNames("run")
        caplog.clear()
        for _ in range(3):
            assert names.name(*first) == "act/mean"
            assert names.name(*second) == "act/mean~"
        assert len(caplog.records) == 1
    assert "'mean' of series 'act' is written as 'act/mean~', because series 'act/mean' is so called" in caplog.text


def test_three_of_one_name():
    names = SeriesNames("run")
    owners = [("a", "/nan/x"), ("a/nan", "/x"), ("a/nan/x", "")]
    assert [names.name(*owner) for owner in owners] == ["a/nan/x", "a/nan/x~", "a/nan/x~~"]
    assert names.name("a/nan/x~") == "a/nan/x~~~"


def test_names_that_do_not_meet_stay(caplog):
    names = SeriesNames("run")
    assert [names.name("a"), names.name("a", "/nan"), names.name("b/nan")] == ["a", "a/nan", "b/nan"]
    assert not caplog.records


def test_a_name_of_the_backend_is_nobodys(caplog):
    names = SeriesNames("run", ["_step"])
    assert names.name("_step") == "_step~"
    assert "because something of the backend's own is so called" in caplog.text
