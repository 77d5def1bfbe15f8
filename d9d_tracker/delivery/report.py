"""What became of the records of a run."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass
class DeliveryReport:
    """What became of the records of a run in one backend.

    Attributes:
        delivered: Records that the backend has accepted and made durable.
        refused: Records that the backend raised on while it accepted others, by series name. They are lost.
        dropped: Records that no longer fitted into the backlog, or were damaged there. They are lost.
        undelivered: Records that the backend had not accepted when the run closed.
        failures: How often the backend raised.
    """

    delivered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    dropped: int = 0
    undelivered: int = 0
    failures: int = 0


@dataclass(frozen=True)
class NonFinite:
    """Where a series was not finite for the first time.

    Attributes:
        name: Name of the series.
        context: Its tags.
        first: The step; for a histogram, the first step of the window.
        last: The same step; for a histogram, the last step of the window.
        value: What a scalar was: ``"nan"``, ``"inf"`` or ``"-inf"``; empty for a histogram.
        nan: How many elements of a histogram were NaN in that window.
        inf: How many were infinite, of either sign.
        elements: How many there were in all.
        ranks: The ranks that met it in that window; empty if there is only one.
    """

    name: str
    context: Mapping[str, str]
    first: int
    last: int
    value: str = ""
    nan: int = 0
    inf: int = 0
    elements: int = 0
    ranks: tuple[int, ...] = ()

    def __str__(self) -> str:
        """Return it in words."""
        tags = "".join(f" {tag}={value}" for tag, value in self.context.items())
        steps = f"at step {self.first:,}"
        if self.value:
            return f"{self.name}{tags}: {self.value} {steps}"
        if self.first < self.last:
            steps = f"between steps {self.first:,} and {self.last:,}"
        kinds = [f"{self.nan:,} NaN"] * (self.nan > 0) + [f"{self.inf:,} infinite"] * (self.inf > 0)
        return f"{self.name}{tags}: {' and '.join(kinds)} of {self.elements:,} elements, {steps}"

    def joined(self, other: "NonFinite") -> "NonFinite":
        """Return what two ranks met in one window of the same series.

        Args:
            other: What the other rank met.
        """
        return replace(
            min(self, other, key=lambda one: one.first),
            last=max(self.last, other.last),
            nan=self.nan + other.nan,
            inf=self.inf + other.inf,
            elements=self.elements + other.elements,
            ranks=tuple(sorted({*self.ranks, *other.ranks})),
        )


class RunReport:
    """What became of a run: sums over its backends, in which a record counts once for each of them.

    Args:
        parts: The reports of the backends by their name; none on a rank that does not write.

    Attributes:
        parts: The same.
        unread: Windows that never became records: the device failed or hung, memory ran out, or the rank that writes is
            gone. They are lost.
        without_slot: Values that had no slot left in eager code, and series that had none in a context of compiled
            code. They are lost.
        missing: Which ranks' values of which steps are not in the run, because a rank stayed away or the others ended
            before it, in words.
        nonfinite: Series that were not finite, and where for the first time, in that order.
    """

    def __init__(self, parts: Mapping[str, DeliveryReport] | None = None):
        self.parts = dict(parts or {})
        self.unread = 0
        self.without_slot = 0
        self.missing: list[str] = []
        self.nonfinite: list[NonFinite] = []

    @property
    def delivered(self) -> int:
        """Records that the backends have accepted and made durable."""
        return sum(part.delivered for part in self.parts.values())

    @property
    def refused(self) -> Counter[str]:
        """Records that a backend raised on while it accepted others, by series name. They are lost there."""
        return sum((part.refused for part in self.parts.values()), Counter())

    @property
    def dropped(self) -> int:
        """Records that no longer fitted into a backlog, or were damaged there. They are lost."""
        return sum(part.dropped for part in self.parts.values())

    @property
    def undelivered(self) -> int:
        """Records that a backend had not accepted when the run closed."""
        return sum(part.undelivered for part in self.parts.values())

    @property
    def failures(self) -> int:
        """How often a backend raised."""
        return sum(part.failures for part in self.parts.values())

    def __repr__(self) -> str:
        """Return all numbers."""
        names = ("delivered", "refused", "dropped", "undelivered", "failures", "unread", "without_slot", "nonfinite")
        numbers = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"RunReport({numbers}, parts={self.parts!r})"
