"""Ranks in words, short also where there are thousands."""

from collections.abc import Iterable


def spell(ranks: Iterable[int]) -> str:
    """Return ranks, at least one, in words: ``"rank 3"``, ``"ranks 0-2, 7"``."""
    ranges: list[tuple[int, int]] = []
    for rank in sorted(set(ranks)):
        if ranges and ranges[-1][1] == rank - 1:
            ranges[-1] = (ranges[-1][0], rank)
        else:
            ranges.append((rank, rank))
    parts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
    return f"rank{'' if parts[1:] == [] and parts[0].isdigit() else 's'} {', '.join(parts)}"
