import pytest

from d9d_tracker.accumulator.distributed import tree

SIZES = [1, 2, 3, 4, 5, 7, 8, 13, 64, 100]


@pytest.mark.parametrize("size", SIZES)
def test_every_rank_but_the_first_is_the_child_of_its_parent(size):
    pairs = {(parent, child) for parent in range(size) for child in tree.children(parent, size)}
    assert pairs == {(tree.parent(rank), rank) for rank in range(1, size)}


@pytest.mark.parametrize("size", SIZES)
def test_a_rank_and_its_children_speak_for_neighbouring_ranks_in_order(size):
    for rank in range(size):
        spoken_for = [rank]
        for child in tree.children(rank, size):
            spoken_for += tree.subtree(child, size)
        assert spoken_for == list(tree.subtree(rank, size))
    assert list(tree.subtree(0, size)) == list(range(size))


@pytest.mark.parametrize("size", SIZES)
def test_height_is_that_of_the_longest_way_down(size):
    def longest(rank: int) -> int:
        return max((1 + longest(child) for child in tree.children(rank, size)), default=0)

    assert all(tree.height(rank, size) == longest(rank) for rank in range(size))


def test_the_writer_has_as_many_children_as_there_are_doublings():
    assert [len(tree.children(0, size)) for size in (1, 2, 4, 8, 4096)] == [0, 1, 2, 3, 12]
