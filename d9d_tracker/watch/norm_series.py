"""What norms are called, and which norms are made of which: of a parameter, a group of them, all, and ratios."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from d9d_tracker.errors import TrackerTypeError, TrackerValueError
from d9d_tracker.series.series import ContextItems, ScalarSeries

Group = str | int | Callable[[str], str]


@dataclass(unsafe_hash=True)  # not frozen: as a constant of compiled code, Dynamo of torch 2.11 takes no such dataclass
class NormSeries:
    """The series of norms.

    Attributes:
        base: What all names begin with.
        p: Which norm.
        group: Returns the group of a parameter.
        ratios: Whether updates are divided by parameters.
    """

    base: str
    p: float
    group: Callable[[str], str]
    ratios: bool

    def make(self, key: str, context: ContextItems) -> ScalarSeries:
        """Return the series of the powers of ``<kind>/<parameter>``, of gradients, parameters or updates."""
        reduce, root = ("max", 1.0) if math.isinf(self.p) else ("mean", self.p)
        return ScalarSeries(f"{self.base}{key}", context, reduce, root, sums=self._sums(key))

    def _sums(self, key: str) -> tuple[tuple[str, int], ...]:
        kind, _, name = key.partition("/")
        group = self.group(name)
        sums = [(f"{self.base}{kind}/{group}", 1), (f"{self.base}{kind}", 1)]
        side = {"updates": 1, "parameters": -1}.get(kind)
        if self.ratios and side is not None:
            sums += [(f"{self.base}ratios/{group}", side), (f"{self.base}ratios", side)]
        return tuple(sums)


def check_order(p: object) -> float:
    """Return which norm to take; an error if there is none such."""
    if isinstance(p, bool) or not isinstance(p, int | float) or not p > 0:
        raise TrackerValueError(f"watch: p={p!r} is no order of a norm; pass a number above 0, or math.inf")
    return float(p)


def grouping(group: Group | None) -> Callable[[str], str]:
    """Return what gives a parameter its group.

    ``"block"`` is its name up to the first number in it, else its first part; a depth, so many parts of it; None, all.
    """
    if group is None:
        return lambda name: name
    if group == "block":
        return _block
    if isinstance(group, int) and not isinstance(group, bool):
        if group < 1:
            raise TrackerValueError(f"watch: group={group} is no depth; pass 1 or more")
        return lambda name: ".".join(name.split(".")[:group])
    if not callable(group):
        raise TrackerTypeError(
            f"watch: group={group!r} is neither 'block', a depth, nor a function from names to groups"
        )

    def checked(name: str) -> str:
        found = group(name)
        if not isinstance(found, str) or not found:
            raise TrackerTypeError(f"watch: group({name!r}) returned {found!r}; return the name of a group")
        return found

    return checked


def _block(name: str) -> str:
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else parts[0]
