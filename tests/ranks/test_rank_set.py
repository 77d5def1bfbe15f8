from d9d_tracker.ranks.rank_set import members, rank_set, spell, union


def test_neighbours_become_ranges():
    assert rank_set([5, 0, 1, 2, 7, 6, 1]) == ((0, 2), (5, 7))
    assert members(rank_set([5, 0, 1])) == {0, 1, 5}
    assert rank_set([]) == ()


def test_union_joins_ranges():
    assert union(((0, 1),), ((2, 3), (7, 7)), ()) == ((0, 3), (7, 7))


def test_words():
    assert spell(((3, 3),)) == "rank 3"
    assert spell(((0, 2), (7, 7))) == "ranks 0-2, 7"
