"""What a block of neighbouring ranks logged up to some point, on its way up the tree."""

import math
from dataclasses import dataclass

import numpy as np

from d9d_tracker.accumulator.host_window import HostWindow, empty_window, merge_windows, union_of_series
from d9d_tracker.accumulator.scalars import COUNT
from d9d_tracker_kernels import CALLS, LAST_STEP

from .rank_set import RankSet, union

# A point in time: a step, and whether the step has ended or values may still follow for it.
Point = tuple[float, bool]
BEGINNING: Point = (-1, True)
END: Point = (math.inf, True)


@dataclass
class Part:
    """The merged window of some ranks, and what is known about them.

    Attributes:
        window: Their values.
        through: All values up to this point are in this part or in an earlier one of the same ranks.
        scalar_ranks: How many of the ranks know each scalar series, int64 of shape ``[scalars]``.
        histogram_ranks: The same for the histogram series, int64 of shape ``[histograms]``.
        missing: Ranks whose values did not arrive in time.
        left: Ranks that have closed the run.
    """

    window: HostWindow
    through: Point
    scalar_ranks: np.ndarray
    histogram_ranks: np.ndarray
    missing: RankSet = ()
    left: RankSet = ()

    @classmethod
    def of_one_rank(cls, window: HostWindow, ended: bool) -> "Part":
        """Return the part of a single rank.

        Args:
            window: Its window.
            ended: Whether the last step of the window has ended.
        """
        return cls(
            window,
            (window.steps[-1], ended),
            np.ones(len(window.scalars), dtype=np.int64),
            np.ones(len(window.histograms), dtype=np.int64),
        )

    @classmethod
    def nothing(cls, index: int, through: Point) -> "Part":
        """Return a part without values."""
        none = np.zeros(0, dtype=np.int64)
        return cls(empty_window(index, [], [], []), through, none, none)

    def merged_with(self, newer: "Part") -> "Part":
        """Return the part of these ranks and of higher ones together, through the point of this one."""
        window = merge_windows(self.window, newer.window)
        scalars = union_of_series(self.window.scalars, newer.window.scalars)
        histograms = union_of_series(self.window.histograms, newer.window.histograms)
        return Part(
            window,
            self.through,
            _added(scalars, (self.window.scalars, self.scalar_ranks), (newer.window.scalars, newer.scalar_ranks)),
            _added(
                histograms,
                (self.window.histograms, self.histogram_ranks),
                (newer.window.histograms, newer.histogram_ranks),
            ),
            union(self.missing, newer.missing),
            union(self.left, newer.left),
        )

    def followed_by(self, later: "Part") -> "Part":
        """Return this part and a later one of the same ranks as one."""
        return Part(
            merge_windows(self.window, later.window),
            later.through,
            _latest(self.window.scalars, self.scalar_ranks, later.window.scalars, later.scalar_ranks),
            _latest(self.window.histograms, self.histogram_ranks, later.window.histograms, later.histogram_ranks),
            later.missing,
            later.left,
        )

    def split(self, point: Point) -> tuple["Part", "Part | None"]:
        """Divide the rows: those up to a point, with the histograms, and those behind it.

        A histogram cannot be divided by steps. It goes with the first piece, filed at a step that piece covers.

        Args:
            point: The point.

        Returns:
            Both pieces; None for the second if it has no rows.
        """
        rows = sum(step <= point[0] for step in self.window.steps)
        if rows == len(self.window.steps):
            return self, None
        window = self.window
        counts = window.counts.copy()
        counts[:, LAST_STEP] = np.minimum(counts[:, LAST_STEP], int(point[0]))
        first = HostWindow(
            window.index,
            window.steps[:rows],
            window.lanes[:rows],
            counts,
            window.moments,
            window.scalars,
            window.histograms,
        )
        rest = empty_window(window.index, window.steps[rows:], window.scalars, window.histograms)
        rest.lanes = window.lanes[rows:]
        ranks = (self.scalar_ranks, self.histogram_ranks)
        return (
            Part(first, min(point, self.through), *ranks, self.missing, self.left),
            Part(rest, self.through, *ranks, self.missing, self.left),
        )

    def without_rows_before(self, point: Point) -> tuple["Part", int]:
        """Leave out what is too late: rows up to a point, and the histograms if nothing is behind it.

        Args:
            point: What was finished already. If its step had not ended, a row of that step is not late.

        Returns:
            The rest, and how many points were left out.
        """
        window = self.window
        late = sum(step < point[0] or (step == point[0] and point[1]) for step in window.steps)
        if late == 0:
            return self, 0
        points = int(np.count_nonzero(window.lanes[:late, COUNT] > 0))
        rest = empty_window(window.index, window.steps[late:], window.scalars, window.histograms)
        rest.lanes = window.lanes[late:]
        if self.through > point:
            rest.counts, rest.moments = window.counts, window.moments
        else:
            points += int(np.count_nonzero(window.counts[:, CALLS] > 0))
        return Part(rest, self.through, self.scalar_ranks, self.histogram_ranks, self.missing, self.left), points

    @property
    def is_empty(self) -> bool:
        """Whether nothing was logged."""
        window = self.window
        return not np.any(window.lanes[:, COUNT] > 0) and not np.any(window.counts[:, CALLS] > 0)


def _added(wide: list, *sides: tuple[list, np.ndarray]) -> np.ndarray:
    if all(series == wide for series, _ in sides):
        return sum((ranks for _, ranks in sides), np.zeros(len(wide), dtype=np.int64))
    slot_of = {(series.name, series.context): slot for slot, series in enumerate(wide)}
    total = np.zeros(len(wide), dtype=np.int64)
    for series, ranks in sides:
        np.add.at(total, [slot_of[one.name, one.context] for one in series], ranks)
    return total


def _latest(older: list, older_ranks: np.ndarray, newer: list, newer_ranks: np.ndarray) -> np.ndarray:
    wide = union_of_series(older, newer)
    slot_of = {(series.name, series.context): slot for slot, series in enumerate(wide)}
    latest = np.zeros(len(wide), dtype=np.int64)
    latest[: len(older)] = older_ranks
    latest[[slot_of[one.name, one.context] for one in newer]] = newer_ranks
    return latest
