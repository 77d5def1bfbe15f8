"""What two ranks have met of one series is told as one."""

from d9d_tracker import NonFinite


def test_the_earliest_step_of_all_ranks_is_the_first():
    late = NonFinite("loss", {}, 10, 10, "nan", ranks=(0,))
    early = NonFinite("loss", {}, 8, 8, "inf", ranks=(1,))
    for joined in (late.joined(early), early.joined(late)):
        assert (joined.first, joined.last, joined.value, joined.ranks) == (8, 10, "inf", (0, 1))


def test_elements_add_up():
    one = NonFinite("values", {}, 4, 7, "", 1, 2, 100, (0,))
    other = NonFinite("values", {}, 4, 7, "", 10, 20, 1000, (3,))
    assert one.joined(other) == NonFinite("values", {}, 4, 7, "", 11, 22, 1100, (0, 3))
