"""What became of the records of a run."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class DeliveryReport:
    """What became of the records of a run in one backend.

    Attributes:
        delivered: Records that the backend has accepted and made durable.
        refused: Records that the backend raised on while it accepted others, by series name. They are lost.
        dropped: Records that no longer fitted into the backlog. They are lost.
        undelivered: Records that the backend had not accepted when the run closed.
        failures: How often the backend raised.
    """

    delivered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    dropped: int = 0
    undelivered: int = 0
    failures: int = 0


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
    """

    def __init__(self, parts: Mapping[str, DeliveryReport] | None = None):
        self.parts = dict(parts or {})
        self.unread = 0
        self.without_slot = 0

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
        """Records that no longer fitted into a backlog. They are lost."""
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
        names = ("delivered", "refused", "dropped", "undelivered", "failures", "unread", "without_slot")
        numbers = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"RunReport({numbers}, parts={self.parts!r})"
