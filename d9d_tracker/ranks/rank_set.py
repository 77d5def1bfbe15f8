"""Sets of ranks as ranges: short in messages and for people, also with thousands of ranks."""

from collections.abc import Iterable

RankSet = tuple[tuple[int, int], ...]


def rank_set(ranks: Iterable[int]) -> RankSet:
    """Return ranks as inclusive ranges in ascending order.

    Args:
        ranks: The ranks, in any order.
    """
    ranges: list[tuple[int, int]] = []
    for rank in sorted(set(ranks)):
        if ranges and ranges[-1][1] == rank - 1:
            ranges[-1] = (ranges[-1][0], rank)
        else:
            ranges.append((rank, rank))
    return tuple(ranges)


def members(ranks: RankSet) -> set[int]:
    """Return the ranks of a set one by one."""
    return {rank for first, last in ranks for rank in range(first, last + 1)}


def union(*sets: RankSet) -> RankSet:
    """Return the ranks that are in any of the sets."""
    present = [ranks for ranks in sets if ranks]
    return present[0] if len(present) == 1 else rank_set(rank for ranks in present for rank in members(ranks))


def spell(ranks: RankSet) -> str:
    """Return a set in words, for messages: ``"rank 3"``, ``"ranks 0-2, 7"``."""
    parts = [str(first) if first == last else f"{first}-{last}" for first, last in ranks]
    plural = len(ranks) > 1 or any(first != last for first, last in ranks)
    return f"rank{'s' if plural else ''} {', '.join(parts)}"
