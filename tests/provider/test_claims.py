"""Names that are made for parts of a series do not meet those of others."""

from d9d_tracker.provider.claims import Claims


def test_whoever_comes_second_is_written_apart_and_said_once(caplog):
    for first, second in ((("act", "/mean"), ("act/mean", "")), (("act/mean", ""), ("act", "/mean"))):
        claims = Claims("run")
        caplog.clear()
        for _ in range(3):
            assert claims.name(*first) == "act/mean"
            assert claims.name(*second) == "act/mean~"
        assert len(caplog.records) == 1
    assert "'mean' of series 'act' is written as 'act/mean~', because series 'act/mean' is so called" in caplog.text


def test_three_of_one_name():
    claims = Claims("run")
    owners = [("a", "/nan/x"), ("a/nan", "/x"), ("a/nan/x", "")]
    assert [claims.name(*owner) for owner in owners] == ["a/nan/x", "a/nan/x~", "a/nan/x~~"]
    assert claims.name("a/nan/x~") == "a/nan/x~~~"


def test_names_that_do_not_meet_stay(caplog):
    claims = Claims("run")
    assert [claims.name("a"), claims.name("a", "/nan"), claims.name("b/nan")] == ["a", "a/nan", "b/nan"]
    assert not caplog.records


def test_a_name_of_the_backend_is_nobodys(caplog):
    claims = Claims("run", ["_step"])
    assert claims.name("_step") == "_step~"
    assert "because something of the backend's own is so called" in caplog.text
