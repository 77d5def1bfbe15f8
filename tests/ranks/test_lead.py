"""What rank 0 hands on is finished: of steps that every rank has ended."""

from unittest import mock

import pytest
from window_of import window_of

from d9d_tracker.ranks.lead import Lead
from d9d_tracker.ranks.member import Member
from d9d_tracker_kernels.binning import LAST_STEP


class Nowhere:
    """A board that nobody reads."""

    def put(self, *_):
        pass

    def get(self, *_):
        return None


def lead():
    return Lead(Nowhere(), 0, 2, 1.0)  # pyright: ignore[reportArgumentType] a board that nobody reads


def ended(step):
    return 2 * step + 1


def test_a_histogram_is_filed_at_a_step_that_every_rank_has_ended():
    values = {step: {"x": [1.0]} for step in range(2, 6)}
    window = window_of(values, {5: {"late": [1.0]}, 2: {"early": [1.0]}})
    handed_on = lead()._handed_on(window, {0: ended(5), 1: ended(3)})
    assert handed_on.steps == [2, 3]
    assert {one.name: handed_on.counts[slot, LAST_STEP] for slot, one in enumerate(handed_on.histograms)} == {
        "early": 2,
        "late": 3,
    }


def test_what_is_missing_begins_with_the_first_step_that_is_not_written():
    one = lead()
    one.written = 13  # and 14 to 20, of which this rank has skipped some, are held back
    one._exclude({1}, "gone")
    one.close()
    assert one.missing == ["rank 1: from step 14 on"]


def test_closing_says_whom_it_waits_for(caplog):
    one = lead()
    one.leave(patience=0.0, failed=False)
    one._look_at_the_clock()
    assert caplog.messages == []
    one._says_at = 0.0  # some seconds later
    one._look_at_the_clock()
    one._look_at_the_clock()
    (words,) = caplog.messages
    assert words.startswith("closing waits for rank 1 to close too, for ")


def test_all_of_it_is_handed_on_when_every_rank_is_there():
    window = window_of({step: {"x": [1.0]} for step in range(2, 6)}, {5: {"late": [1.0]}})
    assert lead()._handed_on(window, {0: ended(5), 1: ended(7)}) is window


def test_what_would_go_wrong_again_is_not_tried_again(monkeypatch):
    """The others are met anew, in another generation, with the next window."""

    def merge(*_):
        raise ValueError("of a window that cannot be merged")

    one, group = lead(), mock.Mock()
    one._group, one._is_formed, one._meeting = group, True, mock.Mock(merge=merge)
    monkeypatch.setattr(one, "_welcome", lambda: None)
    with pytest.raises(ValueError, match="cannot be merged"):
        one.reduce(window_of({1: {"x": [1.0]}}), ended=True)
    group.close.assert_called_once()
    assert not one._is_formed


def test_a_member_gives_up_what_would_go_wrong_again(monkeypatch, caplog):
    member = Member(Nowhere(), 1, 2, 1.0)  # pyright: ignore[reportArgumentType] a board that nobody reads
    member._meeting, member._generation = mock.Mock(), 1

    def merge(*_):
        raise ValueError("of a window that cannot be merged")

    def join(window):
        member._group = mock.Mock()
        return window

    member._meeting.merge = merge
    monkeypatch.setattr(member, "_join", join)
    member.reduce(window_of({1: {"x": [1.0]}}), ended=True)
    assert member.is_lost
    assert member._group is None
    assert "cannot be merged" in caplog.text
    member.close()
