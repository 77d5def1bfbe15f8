"""The delivery of a rank that does not write: rank 0 does."""

from d9d_tracker.accumulator.delivery import DeliveryReport
from d9d_tracker.record import Record


class DeliveryElsewhere:
    """Stands in for the delivery on ranks without a backend: there is nothing to deliver or to wait for.

    Attributes:
        report: Stays empty; rank 0 has the report of the run.
    """

    def __init__(self) -> None:
        self.report = DeliveryReport()

    def put(self, window: int, records: list[Record], first: int) -> None:
        """Not called: a rank that does not write has no records."""
        raise AssertionError("only rank 0 has records")

    def flush(self, timeout: float) -> bool:
        """Return at once."""
        return True

    def settle(self, timeout: float) -> list[int]:
        """Return at once: no window is in a backlog here."""
        return []

    def kept(self) -> list[int]:
        """Return that no window is in a backlog here."""
        return []

    def close(self, timeout: float) -> bool:
        """Return at once."""
        return True

    def join(self) -> None:
        """Return at once."""
