import pytest

from d9d_tracker.ranks.ranks_in_words import spell


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ([3], "rank 3"),
        ([3, 3], "rank 3"),
        ([5, 0, 1, 2, 7, 6, 1], "ranks 0-2, 5-7"),
        ([0, 1], "ranks 0-1"),
        ([9, 4], "ranks 4, 9"),
        (range(4096), "ranks 0-4095"),
    ],
)
def test_ranks_in_words(ranks, words):
    assert spell(ranks) == words
