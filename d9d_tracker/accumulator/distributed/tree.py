"""Who sends to whom: a binomial tree over the ranks, rooted at rank 0.

The parent of a rank is the rank with its lowest set bit cleared. Every rank speaks for a block of neighbouring ranks,
and the blocks of its children follow its own rank in ascending order. Merging them in that order therefore merges all
values in the order of the ranks, the same way in every window.
"""


def parent(rank: int) -> int:
    """Return the rank that a rank other than 0 sends to."""
    return rank & (rank - 1)


def subtree(rank: int, size: int) -> range:
    """Return the ranks that a rank speaks for: itself and all below it.

    Args:
        rank: The rank.
        size: Number of ranks.
    """
    reach = rank & -rank if rank else size
    return range(rank, min(rank + reach, size))


def children(rank: int, size: int) -> list[int]:
    """Return the ranks that send to a rank, in ascending order: at most ``log2(size)``.

    Args:
        rank: The rank.
        size: Number of ranks.
    """
    ranks = len(subtree(rank, size))
    return [rank + (1 << level) for level in range((ranks - 1).bit_length())]


def height(rank: int, size: int) -> int:
    """Return how many levels lie below a rank: 0 for a rank without children.

    Args:
        rank: The rank.
        size: Number of ranks.
    """
    return len(subtree(rank, size)).bit_length() - 1
